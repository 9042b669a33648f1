"""What Ctrl-C and SIGTERM do to a command, and what is said about it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from ..errors import ExitCode

RESUMABLE = frozenset({"compile", "rank", "plan", "apply", "heal", "quantize", "export"})
"""Commands that keep every finished step in a run directory."""


def hear_interrupts(argv: Sequence[str]) -> None:
    """Turns both signals into `KeyboardInterrupt`, unless somebody ignores them.

    In the middle of an import the process ends where it stands, as if killed: modules written in other languages make
    anything of an exception, and run directories are made to be killed.

    Args:
        argv: The command line.
    """

    def interrupt(_: int, frame: FrameType | None) -> None:
        if _imports(frame):
            print(interrupted(argv), file=sys.stderr, flush=True)
            os._exit(ExitCode.INTERRUPTED)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def interrupted(argv: Sequence[str]) -> str:
    """What an interrupted command leaves behind, in words."""
    command = next((word for word in argv if not word.startswith("-")), "")
    if command in RESUMABLE:
        same = "the same command without --force" if "--force" in argv else "the same command"
        return f"interrupted: what had finished is kept; {same} continues from there"
    if command == "sparsify":
        return "interrupted: nothing of it is kept; what the folder held before stays as it was"
    return "interrupted"


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
