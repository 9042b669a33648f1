"""Says what is wrong with a document or options that pydantic refused, and which key was probably meant."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from .errors import UserError, did_you_mean

Settings = TypeVar("Settings", bound=BaseModel)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Every error of a document in words: the key, what is wrong with it, and the key that was probably meant.

    Args:
        error: What pydantic raised.
        model: The model of the whole document.
    """
    return "; ".join(_explain(entry, model) for entry in error.errors())


def _explain(entry: Any, model: type[BaseModel]) -> str:
    keys = [str(part) for part in entry["loc"]]
    if entry["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(keys)}{did_you_mean(keys[-1], known_keys(model, keys[:-1]))}"
    if entry["type"] == "missing":
        return f"missing key {'.'.join(keys)}"
    message = entry["msg"].removeprefix("Value error, ")
    given = f" (given: {entry['input']!r})" if isinstance(entry["input"], str | int | float | bool) else ""
    return f"{'.'.join(keys) or 'document'}: {message}{given}"


def known_keys(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that the section at `path` of a document may have."""
    section: Any = model
    for key in path:
        annotation = section.model_fields[key].annotation if key in section.model_fields else None
        nested = [c for c in (annotation, *get_args(annotation)) if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        section = nested[0]
    return list(section.model_fields)


def _type_text(annotation: Any) -> str:
    """A type as it is written; of several spellings of one value, the last."""
    return inspect.formatannotation(annotation).replace("typing.", "").replace("NoneType", "None")


def settings_of(model: type[Settings], options: Mapping[str, Any], *, where: str) -> Settings:
    """Settings from the keyword arguments of a public function.

    Raises:
        UserError: An option is unknown or has a value that it cannot have.
    """
    for name in options:
        if name not in model.model_fields:
            raise UserError(
                f"unknown option {name!r}{did_you_mean(name, model.model_fields)}",
                where=where,
                hint=f"there is: {', '.join(model.model_fields)}",
            )
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join((where, *(str(part) for part in first["loc"][:1])))
        if not first["loc"]:  # of the settings together
            raise UserError(first["msg"].removeprefix("Value error, "), where=where) from None
        name = str(first["loc"][0])
        annotation = model.model_fields[name].annotation
        raise UserError(
            f"{options[name]!r} cannot be used: {first['msg']}", where=key, hint=f"{name} is {_type_text(annotation)}"
        ) from None
