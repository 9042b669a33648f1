"""Which line of the user's code something comes from."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Iterable
from pathlib import PurePath

import torch

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_NOT_THE_USERS = (PurePath(torch.__file__).parent, PurePath(__file__).parent, PurePath(contextlib.__file__).parent)
"""Where torch, this package and the standard library lie (installed packages lie below the latter: see `_is_users`)."""


def in_text(text: str) -> str:
    """The innermost of the user's lines in a formatted stack trace, as "file.py:12"; empty if there is none."""
    return _innermost((file, int(line)) for file, line in _FRAME.findall(text))


def of_error(error: BaseException) -> str:
    """The innermost of the user's lines that raised the error; else of a stack trace in its message."""
    frames = traceback.extract_tb(error.__traceback__)
    return _innermost((frame.filename, frame.lineno or 0) for frame in frames) or in_text(str(error))


def _innermost(frames: Iterable[tuple[str, int]]) -> str:
    users = [f"{PurePath(file).name}:{line}" for file, line in frames if _is_users(PurePath(file))]
    return users[-1] if users else ""


def _is_users(file: PurePath) -> bool:
    # torch shortens its own paths to relative ones in some traces.
    if not file.is_absolute():
        return False
    below = [root for root in _NOT_THE_USERS if file.is_relative_to(root)]
    # Model libraries in site-packages are the user's business; the standard library next to them is not.
    return not below or (below == [_NOT_THE_USERS[2]] and "site-packages" in file.parts)
