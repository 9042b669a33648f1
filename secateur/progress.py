"""How long work tells where it is. The command line draws bars; the API is silent by default."""

from __future__ import annotations

from typing import Any, Protocol


class Reporter(Protocol):
    """Receives what happens during a compile."""

    def step(self, name: str, state: str, detail: str = "") -> None:
        """A step was `started`, `finished` or `kept` (its inputs did not change)."""

    def progress(self, task: str, done: int, total: int, **info: Any) -> None:
        """`done` of `total` units of a task, with figures worth showing."""

    def note(self, text: str) -> None:
        """Something that must not stay silent: a fallback, a skipped layer, a frozen group."""


class Silent:
    """A reporter that says nothing."""

    def step(self, name: str, state: str, detail: str = "") -> None:
        """Ignores it."""

    def progress(self, task: str, done: int, total: int, **info: Any) -> None:
        """Ignores it."""

    def note(self, text: str) -> None:
        """Ignores it."""
