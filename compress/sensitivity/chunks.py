"""Out of memory: a batch is worked on in halves, and the halves in halves, until they fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import EnvironmentLacksError
from ..data import out_of_memory
from .batches import Batch


class Chunks:
    """Works on batches whole, or in chunks of samples once memory has run out.

    Attributes:
        limit: Samples a chunk; None as long as every batch fits.
    """

    def __init__(self, static_batch: str | None = None) -> None:
        """Args: static_batch: Why batches cannot be cut, or None if they can."""
        self.limit: int | None = None
        self._static = static_batch

    def run(self, batch: Batch, work: Callable[[Batch], Tensor]) -> Tensor:
        """What `work` computes of a batch, for anything that is a mean over its samples, as gradients are.

        Raises:
            EnvironmentLacksError: Memory does not even suffice for one sample, or the batch size is fixed.
        """
        if self.limit is None or batch.size <= self.limit:
            try:
                return work(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if batch.size == 1 or self._static is not None:
                    raise EnvironmentLacksError(
                        "memory does not suffice",
                        where="rank",
                        why=f"{batch.size} samples at once; {self._static or 'a smaller chunk there is not'}",
                        hint="rank by a method without second derivatives, or on a larger machine",
                    ) from error
                self.limit = (batch.size + 1) // 2
            # Outside of the handler, whose exception keeps the frames, and so the tensors, of the failed attempt.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        parts = _cut(batch, self.limit)
        total = self.run(parts[0], work) * (parts[0].size / batch.size)
        for part in parts[1:]:
            total = total + self.run(part, work) * (part.size / batch.size)
        return total

    def facts(self) -> dict[str, int]:
        """Samples a chunk, if batches had to be cut."""
        return {} if self.limit is None else {"samples_a_chunk": self.limit}


def _cut(batch: Batch, limit: int) -> list[Batch]:
    def part(low: int, high: int) -> Batch:
        def cut(leaf: Any) -> Any:
            whole = not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != batch.size
            return leaf if whole else leaf[low:high]

        args, kwargs, target = pytree.tree_map(cut, (batch.args, dict(batch.kwargs), batch.target))
        return replace(batch, args=args, kwargs=kwargs, target=target, size=high - low)

    return [part(low, min(low + limit, batch.size)) for low in range(0, batch.size, limit)]
