"""Loaders of the user's: what is no loader is refused, and what goes wrong while one is read is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .errors import UserError
from .factory import innermost_line


def check_loader(loader: Any, name: str, *, where: str) -> None:
    """Refuses what cannot be iterated over again and again.

    Args:
        loader: What should be a loader.
        name: Its name, for messages.
        where: Where it was given.

    Raises:
        UserError: It cannot be iterated over, or only once.
    """
    it = "the loader" if name == "loader" else f"the {name!r} loader"
    if not hasattr(loader, "__iter__") and not hasattr(loader, "__getitem__"):
        raise UserError(
            f"{it} cannot be iterated over",
            where=where,
            why=f"it is {type(loader).__name__}",
            hint="give a DataLoader, a list of batches, or any object that can be iterated over again and again",
        )
    if hasattr(loader, "__next__"):
        raise UserError(
            f"{it} can be read only once",
            where=where,
            why=f"it is {type(loader).__name__}, used up after one pass; data are read many times",
            hint="give a DataLoader, a list of batches, or an object whose __iter__ starts anew",
        )


class CheckedLoader:
    """A loader whose failures are messages for people; everything else of it (`set_epoch`, `dataset`) is as it was.

    Args:
        loader: What the data factory gave.
        name: Its name there, for messages.

    Raises:
        UserError: It cannot be iterated over, or only once: every step reads the data anew.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self._loader, self.loader_name = loader, name
        check_loader(loader, name, where="data.factory")

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._loader
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the {self.loader_name!r} loader failed: {type(error).__name__}: {error}",
                where=innermost_line(error),
                hint="read the loader once by itself and mend what fails there",
            ) from error

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)
