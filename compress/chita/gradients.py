"""Rows of the data matrix: gradients of single samples or of mini-batches, by `vmap` and in chunks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from ...errors import EnvironmentLacksError, UserError
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import LossFn, out_of_memory, scalar_loss
from ..heal.evaluate import cross_entropy
from ..sensitivity.batches import Batch
from .variables import Variables

_log = logging.getLogger(__name__)

Progress = Callable[..., Any]

_CHUNK_NUMBERS = 2**25
"""Gradients that are held at once, as numbers: 128 MB in single precision."""

_MOST_SAMPLES = 64


class Rows:
    """The mini-batches whose gradients are the rows.

    Args:
        program: The network, at the weights where the gradients are taken; evaluation mode is used.
        batches: The data.
        loss: Mean loss of a batch.
        variables: Which weights.
        batch_size: Samples of a row, m.

    Raises:
        UserError: The data make no row.
    """

    def __init__(
        self, program: Program, batches: Sequence[Batch], loss: LossFn, variables: Variables, batch_size: int = 1
    ) -> None:
        self.program, self.batches, self.variables = program, batches, variables
        self.loss = loss
        # The default loss looks at its labels before it computes, which `vmap` does not allow.
        self.vectorised = _plain_cross_entropy if loss is cross_entropy else loss
        self.batch_size = batch_size
        self.static = program.static_batch
        if self.static:
            self.batch_size = batches[0].size
        self.counts = [batch.size // self.batch_size for batch in batches]
        self.count = sum(self.counts)
        if self.count < 1:
            raise UserError(
                "there is no complete mini-batch",
                where="sparsify.batch_size",
                why=f"the loader's batches hold {max(batch.size for batch in batches)} samples, a row {batch_size}",
                hint="lower batch_size or raise that of the loader",
            )
        numel = max(variables.size, 1)
        self.chunk = max(1, min(_MOST_SAMPLES // self.batch_size, _CHUNK_NUMBERS // numel))
        self.one_by_one = self.static or ""

    def run(self, progress: Progress | None = None) -> Iterator[Tensor]:
        """Gradients float32 [rows of a chunk, p], in the order of the data.

        Raises:
            UserError: A gradient is NaN or infinite, or network or loss fail on the data.
            EnvironmentLacksError: Memory does not suffice for one row.
        """
        tensors = self.variables.tensors(self.program)
        done = 0
        with (
            eval_mode(self.program.graph_module),
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast(next(iter(tensors.values())).device.type, enabled=False),
        ):
            for batch, count in zip(self.batches, self.counts, strict=True):
                low = 0
                while low < count:
                    high = min(count, low + (1 if self.one_by_one else self.chunk))
                    rows = self._try(tensors, batch, low, high)
                    if rows is None:
                        continue
                    if not bool(torch.isfinite(rows).all()):
                        raise _not_finite(self.variables, rows, done)
                    yield rows
                    low, done = high, done + high - low
                    if progress:
                        progress(done, self.count, stage="gradients")

    def _try(self, tensors: dict[str, Tensor], batch: Batch, low: int, high: int) -> Tensor | None:
        """Some rows, or None if it has to be tried again in smaller parts."""
        try:
            return self._single(tensors, batch, low) if self.one_by_one else self._many(tensors, batch, low, high)
        except UserError:
            if self.one_by_one or self.vectorised is self.loss:
                raise
            self.vectorised = self.loss  # It says better what is wrong.
            self.one_by_one = "the loss was refused"
            return None
        except (RuntimeError, MemoryError, TypeError, ValueError, IndexError) as error:
            if not out_of_memory(error):
                if self.one_by_one:
                    raise
                self.one_by_one = str(error).splitlines()[0] or type(error).__name__
                _log.warning("rows cannot be vectorised and go one by one: %s", self.one_by_one)
                return None
            if high - low == 1:
                raise EnvironmentLacksError(
                    "memory does not suffice",
                    where="sparsify",
                    why="not even for the gradient of one row",
                    hint="take method='magnitude', or a larger machine",
                ) from error
            self.chunk = (high - low + 1) // 2
            _log.warning("out of memory with %d rows at once: going on with %d", high - low, self.chunk)
            return None

    def _many(self, tensors: dict[str, Tensor], batch: Batch, low: int, high: int) -> Tensor:
        moving, fixed, spec = self.inputs(batch, low, high)

        def loss(weights: dict[str, Tensor], inputs: list[Tensor]) -> Tensor:
            given = iter(inputs)
            args, kwargs, target = pytree.tree_unflatten(
                [next(given) if leaf is None else leaf for leaf in fixed], spec
            )
            output = functional_call(self.program.graph_module, weights, args, kwargs)
            return scalar_loss(self.vectorised, output, target)

        # Functional gradients of chunks may not see the graph of a user who trains.
        with torch.no_grad():
            found = vmap(grad(loss), in_dims=(None, 0), randomness="different")(tensors, moving)
        return torch.cat([found[name].flatten(1) for name in self.variables.names], 1).float()

    def inputs(self, batch: Batch, low: int, high: int) -> tuple[list[Tensor], list[Any], Any]:
        """Leaves that differ between rows as [rows, m, …], the others (None where one of the former belongs)."""
        leaves, spec = pytree.tree_flatten((batch.args, dict(batch.kwargs), batch.target))
        moves = [isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == batch.size for x in leaves]
        span = slice(low * self.batch_size, high * self.batch_size)
        moving = [
            leaf[span].unflatten(0, (high - low, self.batch_size)) for leaf, m in zip(leaves, moves, strict=True) if m
        ]
        return moving, [None if m else leaf for leaf, m in zip(leaves, moves, strict=True)], spec

    def _single(self, tensors: dict[str, Tensor], batch: Batch, row: int) -> Tensor:
        moving, fixed, spec = self.inputs(batch, row, row + 1)
        given = iter(moving)
        args, kwargs, target = pytree.tree_unflatten([next(given)[0] if leaf is None else leaf for leaf in fixed], spec)
        weights = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        with torch.enable_grad():
            output = functional_call(self.program.graph_module, weights, args, kwargs)
            value = scalar_loss(self.loss, output, target)
            found = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        parts = [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights.values(), strict=True)]
        return torch.cat([part.reshape(-1) for part in parts])[None].float().detach()


def _plain_cross_entropy(output: Any, target: Any) -> Tensor:
    return F.cross_entropy(output.float(), target)


def _not_finite(variables: Variables, rows: Tensor, done: int) -> UserError:
    row, column = (int(i) for i in (~torch.isfinite(rows)).nonzero()[0])
    name = next(item.name for item in variables if column < item.span.stop)
    return UserError(
        "a gradient is NaN or infinite",
        where=f"{name}, row {done + row} of the data",
        why="the loss or the network overflows on this sample, or the sample itself is not finite",
        hint="evaluate the dense model on this data first",
    )
