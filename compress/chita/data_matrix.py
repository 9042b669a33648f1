"""The data matrix A: one gradient a row. Only products with it are ever formed, never p x p."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from ...errors import EnvironmentLacksError, UserError
from .gradients import Progress, Rows

_log = logging.getLogger(__name__)

Storage = Literal["auto", "float32", "bfloat16", "disk", "matrix-free"]

_GRAM_ROWS = 128
"""Rows of a block of A Aᵀ."""

_COLUMNS = 2**24
"""Numbers of A that are converted or gathered at a time."""


class DataMatrix(Protocol):
    """What the solvers ask of A, [n, p].

    All vectors are float32 and lie on `device`.
    """

    @property
    def rows(self) -> int:
        """Number n of gradients."""
        ...

    @property
    def size(self) -> int:
        """Number p of weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where vectors lie."""
        ...

    def forward(self, v: Tensor) -> Tensor:
        """A v, [n], for v [p]."""
        ...

    def adjoint(self, u: Tensor) -> Tensor:
        """Aᵀ u, [p], for u [n]."""
        ...


@dataclass(frozen=True)
class StoredMatrix:
    """A that is held: in memory in single precision or BF16, or as a file mapped into memory.

    Attributes:
        values: [n, p].
        place: Where it lies, for people.
    """

    values: Tensor
    place: str = "memory"
    _folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def rows(self) -> int:
        """Number n of gradients."""
        return self.values.shape[0]

    @property
    def size(self) -> int:
        """Number p of weights."""
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        """Where vectors lie."""
        return self.values.device

    @property
    def bytes(self) -> int:
        """What it takes."""
        return self.values.numel() * self.values.element_size()

    def forward(self, v: Tensor) -> Tensor:
        """A v."""
        if self.values.dtype == torch.float32:
            return self.values @ v
        total = v.new_zeros(self.rows)
        for span in self.spans():
            total += self.values[:, span].float() @ v[span]
        return total

    def adjoint(self, u: Tensor) -> Tensor:
        """Aᵀ u."""
        if self.values.dtype == torch.float32:
            return u @ self.values
        return torch.cat([u @ self.values[:, span].float() for span in self.spans()])

    def columns(self, index: Tensor | slice) -> Tensor:
        """Some columns, float32 [n, columns]."""
        found = self.values[:, index] if isinstance(index, slice) else self.values.index_select(1, index)
        return found.float()

    def restrict(self, index: Tensor | slice) -> StoredMatrix:
        """The matrix of some columns only: a copy in memory, or for a slice a view."""
        if isinstance(index, slice):
            return replace(self, values=self.values[:, index])
        return replace(self, values=self.values.index_select(1, index), place="memory", _folder=None)

    def square_sums(self) -> Tensor:
        """‖A_j‖² of every column, [p]."""
        return torch.cat([self.columns(span).square().sum(0) for span in self.spans()])

    def gram(self, index: Tensor | slice | None = None) -> Tensor:
        """A_S A_Sᵀ over some columns (all if None), float64 [n, n]; little over n² |S| operations."""
        total = torch.zeros(self.rows, self.rows, dtype=torch.float64, device=self.device)
        if isinstance(index, slice):
            index = torch.arange(self.size, device=self.device)[index]
        parts = list(self.spans()) if index is None else list(index.split(self._width()))
        for part in parts:
            columns = self.columns(part)
            for low in range(0, self.rows, _GRAM_ROWS):  # below the diagonal only: it is symmetric
                high = min(low + _GRAM_ROWS, self.rows)
                total[low:, low:high] += (columns[low:] @ columns[low:high].T).double()
        return total.tril() + total.tril(-1).T

    def spans(self) -> Iterator[slice]:
        """Columns in parts of bounded size."""
        width = self._width()
        return (slice(low, min(low + width, self.size)) for low in range(0, self.size, width))

    def _width(self) -> int:
        return max(1, _COLUMNS // max(self.rows, 1))


def free_memory(device: torch.device) -> int:
    """Bytes that can be had without swapping."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file():
        found = next((line for line in info.read_text().splitlines() if line.startswith("MemAvailable:")), "")
        if found:
            return int(found.split()[1]) * 1024
    return 2**63 - 1  # The system does not say (macOS): trust the allocator.


def choose_storage(rows: int, size: int, device: torch.device, *, memory: int | None = None) -> tuple[Storage, str]:
    """Where a matrix of this size is held, and why.

    Args:
        rows: n.
        size: p.
        device: Of the network.
        memory: Bytes that it may take; half of what is free if None, as solvers gather columns of it.
    """
    limit = free_memory(device) // 2 if memory is None else memory
    need = 4 * rows * size
    said = f"{rows} x {size} gradients take {human(need)} in single precision, and {human(limit)} are free for them"
    if need <= limit:
        return "float32", said
    if need // 2 <= limit:
        return "bfloat16", said
    return ("disk", said) if device.type == "cpu" else ("matrix-free", said)


def collect(
    rows: Rows,
    storage: Storage,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> StoredMatrix:
    """Computes the gradients and holds them.

    Args:
        rows: What the gradients are of.
        storage: `float32`, `bfloat16`, or `disk` (BF16 in a file that is removed with the matrix).
        folder: Where the file goes; the system's temporary folder if None.
        progress: Told `progress(done, total, stage="gradients")`.

    Raises:
        EnvironmentLacksError: The disk is full.
        UserError: See `Rows.run`.
    """
    count, size = rows.count, rows.variables.size
    held, place = None, "memory"
    if storage == "disk":
        values, held, place = _mapped(count, size, folder)
    else:
        dtype = torch.bfloat16 if storage == "bfloat16" else torch.float32
        values = torch.empty(count, size, dtype=dtype, device=_device(rows))
    done = 0
    for found in rows.run(progress):
        values[done : done + len(found)] = found
        done += len(found)
    return StoredMatrix(values, place, held)


def _mapped(count: int, size: int, folder: Path | None) -> tuple[Tensor, tempfile.TemporaryDirectory[str], str]:
    import shutil

    need = 2 * count * size
    held = tempfile.TemporaryDirectory(prefix="secateur-gradients-", dir=folder)
    free = shutil.disk_usage(held.name).free
    if need > free:
        held.cleanup()
        raise EnvironmentLacksError(
            "the disk is too small for the gradients",
            where=str(folder or tempfile.gettempdir()),
            why=f"they take {human(need)} in BF16, and {human(free)} are free",
            hint="name another folder (folder=…), read fewer samples, or take storage='matrix-free'",
        )
    path = Path(held.name) / "gradients.bf16"
    values = torch.from_file(str(path), shared=True, size=count * size, dtype=torch.bfloat16).view(count, size)
    _log.warning("%s of gradients go to %s", human(need), path)
    return values, held, str(path)


def _device(rows: Rows) -> torch.device:
    return next(iter(rows.variables.tensors(rows.program).values())).device


def human(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def stored(matrix: DataMatrix, why: str) -> StoredMatrix:
    """The matrix if it is held.

    Raises:
        UserError: It is matrix-free.
    """
    if isinstance(matrix, StoredMatrix):
        return matrix
    raise UserError(
        f"{why} reads columns of the gradients, which are not held",
        where="sparsify.storage",
        hint="take storage='disk', or method='chita-bso' or 'chita++'",
    )
