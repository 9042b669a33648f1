"""What can go wrong, said so that a person knows what to type next.

A `UserError` never shows a traceback; every other exception is a bug of ours and does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    BUG = 1
    USAGE = 2
    GATE = 3
    UNSUPPORTED = 4
    ENVIRONMENT = 5
    INTERRUPTED = 130


class UserError(Exception):
    """An error whose cause lies outside secateur.

    Args:
        what: What went wrong, one sentence.
        where: File, key, module path or node that it concerns.
        why: The cause.
        hint: What to type or change next.
        code: Exit code of the command line.
    """

    code: ExitCode = ExitCode.USAGE

    def __init__(
        self, what: str, *, where: str = "", why: str = "", hint: str = "", code: ExitCode | None = None
    ) -> None:
        self.what, self.where, self.why, self.hint = what, where, why, hint
        if code is not None:
            self.code = code
        super().__init__(self.render())

    def render(self) -> str:
        """The message as people read it: one line a part, empty parts left out."""
        parts = (("error", self.what), ("where", self.where), ("why", self.why), ("hint", self.hint))
        return "\n".join(f"{label}: {text}" for label, text in parts if text)


class UnsupportedError(UserError):
    """The model or an operation in it is beyond what secateur handles."""

    code = ExitCode.UNSUPPORTED


class EnvironmentLacksError(UserError):
    """The machine lacks something that was asked for: a runtime, a device, an instruction set."""

    code = ExitCode.ENVIRONMENT


class BudgetError(UserError):
    """A budget that cannot be met; says by how much and names the nearest that can."""

    code = ExitCode.GATE


@dataclass(frozen=True)
class Refused:
    """The answer "no" to "can this be pruned, implanted, quantised?", with its reason.

    Attributes:
        reason: Why not, one sentence.
        where: Module path and the user's source line where known.
        hint: What would make it possible.
    """

    reason: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return self.reason + (f" ({self.where})" if self.where else "")


@dataclass(frozen=True)
class Allowed:
    """The answer "yes"."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A suggestion to put behind "unknown x": ` (did you mean y?)`, or nothing if no known word is near."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean {by_lower[near[0]]}?)" if near else ""
