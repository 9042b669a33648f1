"""What the library says while it works, kept instead of printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
"""Severities, the gravest first."""

Line = tuple[str, str]
"""Severity and message."""


@cache
def logger(module: Any) -> Any:
    """The one logger of the library in this process.

    The library takes the logger of the first object that it makes and ignores later ones ("the new logger is ignored")
    for as long as that object lives, so there can be only one.

    Args:
        module: The imported `tensorrt` or `tensorrt_rtx`.
    """

    class _Logger(module.ILogger):
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.lines: list[Line] = []

        def log(self, severity: Any, msg: str) -> None:
            self.lines.append((str(severity).rsplit(".", 1)[-1], msg))

    return _Logger()


@contextmanager
def recording(module: Any) -> Iterator[list[Line]]:
    """What the library says within the block; a list that grows."""
    shared = logger(module)
    before, shared.lines = shared.lines, []
    try:
        yield shared.lines
    finally:
        shared.lines = before


def messages(lines: Sequence[Line], least: str) -> list[str]:
    """Messages of at least this severity, once each."""
    wanted = SEVERITIES[: SEVERITIES.index(least) + 1]
    return list(dict.fromkeys(text.strip() for severity, text in lines if severity in wanted))


def as_text(lines: Sequence[Line], least: str = "INFO") -> str:
    """The log as a file."""
    wanted = SEVERITIES[: SEVERITIES.index(least) + 1]
    return "".join(f"{severity}: {text}\n" for severity, text in lines if severity in wanted)
