"""Files that cannot be written: a full disk is no bug, and a person wants to know which file it was."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOENT})
# Libraries that write in other languages say it in words: "I/O error: No space left on device (os error 28)".
_IN_WORDS = re.compile(r"\(os error (\d+)\)")


@contextmanager
def disk_errors(where: str | Path) -> Iterator[None]:
    """Says in words what keeps the block from writing its files.

    Args:
        where: What was being written, where the error itself names no file.

    Raises:
        UserError: There is no room left, or the file or its folder may not be written or is not there.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        code = _errno(error)
        if code not in _FULL | _REFUSED:
            raise
        named = error.filename if isinstance(error, OSError) and error.filename else where
        if code in _FULL:
            raise UserError(
                "there is no room to write a file",
                where=str(named),
                why=os.strerror(code),
                hint="make room, or choose another place; the same command then continues where it stopped",
            ) from error
        raise UserError(
            "a file cannot be opened or written", where=str(named), why=os.strerror(code), hint="check the path"
        ) from error


def _errno(error: Exception) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    in_words = _IN_WORDS.search(str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(in_words[1]) if in_words else None
