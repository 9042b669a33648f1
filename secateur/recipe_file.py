"""Reads a recipe file, expands its variables, applies overrides and says exactly what is wrong with it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from .errors import UserError
from .recipe import Recipe
from .unread import leave_out, tell_unread
from .validation import explain

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load_recipe(
    path: str | Path, overrides: Mapping[str, Any] | None = None, *, note: Callable[[str], None] = lambda text: None
) -> Recipe:
    """Loads and checks a recipe.

    Strings may hold `${NAME}` or `${NAME:-default}`, taken from the environment. `model.checkpoint`, factories that are
    files, and every string in `args` that starts with `./` or `../` are relative to the recipe file.

    Args:
        path: YAML file.
        overrides: Values by dotted key (`budget.macs`), which replace those of the file. Another `rank.method`,
            `plan.by`, … leaves out options of the file's.
        note: Told what was left out, and what is not read.

    Raises:
        UserError: The file cannot be read, is not YAML, or a key or value in it is wrong.
    """
    path = Path(path)
    raw = read_yaml(path, what="recipe")
    if not isinstance(raw, dict):
        raise UserError(
            "a recipe must be a mapping", where=str(path), why=f"it holds {type(raw).__name__}", hint="secateur init"
        )
    if str(raw.get("secateur", "")).startswith("plan/"):
        raise UserError(
            "this is a plan, not a recipe",
            where=str(path),
            hint="edit it where it lies, in its run directory, and name that: secateur apply RUN",
        )
    overrides = overrides or {}
    leave_out(raw, overrides, note)
    for key, value in overrides.items():
        _override(raw, key.split("."), value, key)
    recipe = parse_recipe(_resolve(raw, path.resolve().parent, str(path)), where=str(path))
    tell_unread(recipe, raw, overrides, note)
    return recipe


def parse_recipe(raw: Mapping[str, Any], *, where: str) -> Recipe:
    """Checks a recipe that is already in memory, with absolute paths.

    Raises:
        UserError: Names every wrong key, with a suggestion.
    """
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UserError(
            f"the recipe has {error.error_count()} error{'s' if error.error_count() > 1 else ''}",
            where=where,
            why=explain(error, Recipe),
            hint="mend these keys; `secateur init` writes a recipe in which every key is explained",
        ) from None


def read_yaml(path: Path, *, what: str) -> Any:
    """Reads one YAML document with the safe loader.

    Raises:
        UserError: The file is missing, unreadable or not YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"there is no {what} here", where=str(path), hint="check the path; `secateur init` writes a recipe"
        ) from None
    except OSError as error:
        raise UserError(f"the {what} cannot be read", where=str(path), why=str(error), hint="check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"the {what} cannot be read", where=str(path), why=str(error), hint="save it as UTF-8"
        ) from None
    except RecursionError:
        raise UserError(f"the {what} is nested too deeply", where=str(path), hint="see what wrote it") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        at = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise UserError(
            f"the {what} is not valid YAML", where=at, why=str(error.problem), hint="mend this line"
        ) from None
    except YAMLError as error:
        raise UserError(f"the {what} is not valid YAML", where=str(path), why=str(error).splitlines()[0]) from None


def write_yaml(data: Any, path: Path) -> None:
    """Writes plain data as block-style YAML, in the order given."""
    yaml = YAML()
    yaml.width = 120
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(data, file)


def _override(raw: dict[str, Any], keys: Sequence[str], value: Any, whole: str) -> None:
    for key in keys[:-1]:
        child = raw.get(key)
        if child is None:
            child = raw[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"cannot set {whole}", where="--set", why=f"{key} is not a section of the recipe")
        raw = child
    raw[keys[-1]] = value


def _resolve(value: Any, base: Path, where: str, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, base, where, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(v, base, where, key) for v in value]
    if not isinstance(value, str):
        return value
    text = _VARIABLE.sub(lambda match: _variable(match, where, key), value)
    leaf = key.rsplit(".", 1)[-1]
    is_path = leaf == "checkpoint" or (".args." in key and text.startswith(("./", "../")))
    if leaf in {"factory", "loss", "metric"} and ".py:" in text:
        is_path = True
    return os.path.normpath(base / text) if is_path else text


def _variable(match: re.Match[str], where: str, key: str) -> str:
    name, default = match.groups()
    value = os.environ.get(name, default)
    if value is None:
        raise UserError(
            f"the environment has no {name}",
            where=f"{where}, key {key}",
            hint=f"export {name}=…, or write ${{{name}:-default}}",
        )
    return value
