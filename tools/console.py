"""Draws progress: bars on a terminal, plain lines elsewhere. Everything goes to stderr; stdout is for results."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_SECONDS = 10.0
_WIDTH_OF_FILES = 140


def stdout_console() -> Console:
    """A console for results; a pipe or a log gets lines that are long enough for the tables."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH_OF_FILES)


class ConsoleReporter:
    """A `Reporter` for people; use it as a context manager.

    Args:
        quiet: Says nothing but errors.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self._bars = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[info]}"),
            console=self.console,
            transient=True,
        )
        self._live = self.console.is_terminal and not quiet
        self._tasks: dict[str, Any] = {}
        self._begun: dict[str, float] = {}
        self._spoken = 0.0

    def __enter__(self) -> ConsoleReporter:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._bars.stop()

    def step(self, name: str, state: str, detail: str = "") -> None:
        """Prints one line a step."""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()
        self._begun.clear()
        mark = {"started": "·", "finished": "✓", "kept": "="}[state]
        self.console.print(f"{mark} {name} {state}{f' ({detail})' if detail else ''}", markup=False)

    def progress(self, task: str, done: int, total: int, **info: Any) -> None:
        """Moves a bar; without a terminal, prints a line now and then."""
        shown = "  ".join(f"{key} {_number(value)}" for key, value in info.items() if value is not None)
        if self._live:
            if task not in self._tasks:
                self._tasks[task] = self._bars.add_task(task, total=total, info="")
            self._bars.update(self._tasks[task], completed=done, total=total, info=shown)
            return
        now = time.monotonic()
        begun = self._begun.setdefault(task, now)
        if now - self._spoken < _LINE_EVERY_SECONDS and done < total:
            return
        self._spoken = now
        left = f", {(now - begun) / done * (total - done):.0f} s left" if 0 < done < total else ""
        self.console.print(f"  {task} {done}/{total}{left}  {shown}", markup=False)

    def note(self, text: str) -> None:
        """Prints something that must not stay silent."""
        self.console.print(f"  note: {text}", markup=False)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
