"""Factories: how a recipe names Python functions, `package.module:function` or `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .errors import UserError, did_you_mean


class DataSpec(BaseModel):
    """The data.

    Attributes:
        factory: `package.module:function` or `path/to/file.py:function`. The function returns an object or a mapping
            with the loaders `train`, `test` and, better, `validation` and `calibration`; see `secateur.inputs.Data`.
        args: Keyword arguments of the factory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    factory: str
    args: dict[str, Any] = Field(default_factory=dict)

    @field_validator("factory")
    @classmethod
    def _names_a_function(cls, text: str) -> str:
        module, _, function = text.rpartition(":")
        if not module or not function:
            raise ValueError("write package.module:function or path/to/file.py:function")
        return text

    def anchored(self, base_dir: Path) -> DataSpec:
        """The same factory, its file (if it is one) as an absolute path."""
        path = source_file(self.factory, base_dir)
        return (
            self if path is None else self.model_copy(update={"factory": f"{path}:{self.factory.rpartition(':')[2]}"})
        )


def source_file(factory: str, base_dir: Path | None = None) -> Path | None:
    """The absolute path of the file that `factory` names, or None if it names a module."""
    module = factory.rpartition(":")[0]
    return ((base_dir or Path()) / module).absolute() if module.endswith(".py") else None


def load_factory(
    factory: str, base_dir: Path | None = None, *, where: str = "factory", known: Iterable[str] = ()
) -> Callable[..., Any]:
    """Imports the function that `factory` names.

    Args:
        factory: `package.module:function` or `path/to/file.py:function`.
        base_dir: Where a relative file, and a module that is not installed, is looked for; by default the current
            directory.
        where: The key of the recipe, for messages.
        known: Short names that the key accepts besides factories, for messages.

    Raises:
        UserError: The name is malformed, the module cannot be imported, or it has no such function.
    """
    module_name, _, attribute = factory.rpartition(":")
    if not module_name or not attribute:
        names = tuple(known)
        accepted = f"one of {', '.join(names)}, or " if names else ""
        raise UserError(
            f"{factory!r} names no function{did_you_mean(factory, names)}",
            where=where,
            hint=f"write {accepted}package.module:function or path/to/file.py:function",
        )
    path = source_file(factory, base_dir)
    where = f"{where} {factory}"
    module = _import_file(path, where) if path else _import_module(module_name, base_dir or Path(), where)
    found = getattr(module, attribute, None)
    if found is None:
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UserError(
            f"{module_name} has no {attribute!r}{did_you_mean(attribute, public)}",
            where=where,
            why=f"it defines {', '.join(public[:8]) or 'nothing that can be called'}",
        )
    if not callable(found):
        raise UserError(f"{attribute!r} is {type(found).__name__}, not a function", where=where)
    return found


def call_factory(
    factory: str, args: Mapping[str, Any] | None = None, base_dir: Path | None = None, *, where: str = "factory"
) -> Any:
    """Imports a factory and calls it with `args` as keyword arguments.

    Raises:
        UserError: It cannot be imported, or it raises. A `UserError` of the factory's own passes through; the cause of
            any other is kept as `__cause__`, and its line is named.
    """
    function = load_factory(factory, base_dir, where=where)
    try:
        return function(**(args or {}))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{factory} failed: {type(error).__name__}: {error}",
            where=innermost_line(error) or where,
            why=f"called with {_call_text(args or {})}",
            hint=f"check the arguments under {where.partition('.')[0]}.args",
        ) from error


@contextmanager
def _importable_from(directory: Path) -> Iterator[None]:
    """Puts a directory last on the import path, so that it never hides an installed package."""
    text = str(directory.absolute())
    added = text not in sys.path
    if added:
        sys.path.append(text)
    try:
        yield
    finally:
        if added and text in sys.path:
            sys.path.remove(text)


def _import_module(name: str, base_dir: Path, where: str) -> ModuleType:
    try:
        with _importable_from(base_dir):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {error.name!r}",
                where=where,
                why=f"it is neither installed nor in {base_dir.absolute()}",
                hint="install it, or name the file: path/to/file.py:function",
            ) from None
        raise _import_failed(name, error, where) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error, where) from error


def _import_file(path: Path, where: str) -> ModuleType:
    if not path.is_file():
        raise UserError(
            "there is no such file", where=where, why=f"looked for {path}", hint="check the path in the recipe"
        )
    # The digest keeps two files of the same name apart; the stem makes tracebacks and worker processes readable.
    name = f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError("this is not a Python file", where=where)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _importable_from(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise _import_failed(str(path), error, where) from error
    return module


def _import_failed(name: str, error: BaseException, where: str) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(
        f"{name} cannot be imported: {type(error).__name__}: {error}", where=innermost_line(error) or where
    )


def innermost_line(error: BaseException) -> str:
    """File and line of the innermost frame of an exception; of the text, if it is a syntax error.

    Nothing if that frame is this file: then the call itself was wrong, and no line of the user's.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code.co_filename == __file__:
        return ""
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def _call_text(args: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in args.items()) or "no arguments"
