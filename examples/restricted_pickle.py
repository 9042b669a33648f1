"""Reads pickles of plain containers and numpy arrays, and refuses everything else before it is created."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

_RECONSTRUCT = np.zeros(0, np.uint8).__reduce__()[0]
"""What numpy pickles arrays with; its module was renamed in numpy 2."""

_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _NumpyUnpickler(pickle.Unpickler):
    """An unpickler that knows four names; strings of Python 2 become `str`."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}") from None


def load_numpy_pickle(path: Path) -> Any:
    """Unpickles a file that holds containers, numbers, strings and numpy arrays.

    Args:
        path: The file.

    Raises:
        UserError: The file cannot be read, is damaged, or asks for any other class or function.
    """
    try:
        with path.open("rb") as file:
            return _NumpyUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError("the file cannot be read", where=str(path), why=str(error)) from None
    except Exception as error:  # a damaged pickle can raise almost anything
        raise UserError(
            "the pickle was refused",
            where=str(path),
            why=str(error) or type(error).__name__,
            hint="only plain containers and numpy arrays are read; take the file from the original archive",
        ) from None
