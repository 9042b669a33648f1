"""A that is never held: its products by forward-mode and reverse-mode derivatives of the rows' losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from ...errors import UnsupportedError
from ...passes.shapes import eval_mode
from ..data import first_line, scalar_loss
from .gradients import Rows


class MatrixFree:
    """Products with A for the price of a pass over the data each: A v by one forward, Aᵀ u by one forward and backward.

    Args:
        rows: The mini-batches; the weights at which the network stands when this is made are those of A.

    Raises:
        UnsupportedError: The network cannot be vectorised over samples, or has no forward-mode derivative.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._weights = {name: tensor.clone() for name, tensor in rows.variables.tensors(rows.program).items()}
        if rows.static:
            raise UnsupportedError(
                "products without a matrix need a free batch size", where="sparsify.storage", why=rows.static
            )

    @property
    def rows(self) -> int:
        """Number n of gradients."""
        return self._rows.count

    @property
    def size(self) -> int:
        """Number p of weights."""
        return self._rows.variables.size

    @property
    def device(self) -> torch.device:
        """Where vectors lie."""
        return next(iter(self._weights.values())).device

    def forward(self, v: Tensor) -> Tensor:
        """A v: how the rows' losses change along v."""
        direction = self._typed(v)
        return torch.cat([jvp(f, (self._weights,), (direction,))[1].float() for f in self._losses()])

    def adjoint(self, u: Tensor) -> Tensor:
        """Aᵀ u: the gradient of the rows' losses, weighted by u."""
        total = torch.zeros(self.size, device=self.device)
        done = 0
        for f in self._losses():
            value, pull, *_ = vjp(f, self._weights)
            part = u[done : done + len(value)].to(value.dtype)
            total += self._rows.variables.flatten(pull(part)[0]).float()
            done += len(part)
        return total

    def _typed(self, v: Tensor) -> dict[str, Tensor]:
        return {name: part.to(self._weights[name].dtype) for name, part in self._rows.variables.split(v).items()}

    def _losses(self) -> Iterator[Callable[[dict[str, Tensor]], Tensor]]:
        """For every chunk of rows, the function from weights to the rows' losses."""
        rows = self._rows
        module = rows.program.graph_module
        with (
            eval_mode(module),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            torch.autocast(self.device.type, enabled=False),
        ):
            for batch, count in zip(rows.batches, rows.counts, strict=True):
                step = max(1, 64 // rows.batch_size)
                for low in range(0, count, step):
                    moving, fixed, spec = rows.inputs(batch, low, min(count, low + step))
                    yield _guarded(_Losses(rows, moving, fixed, spec))


class _Losses:
    """Losses [rows] of some rows, from the weights."""

    def __init__(self, rows: Rows, moving: list[Tensor], fixed: list[Any], spec: Any) -> None:
        self.rows, self.moving, self.fixed, self.spec = rows, moving, fixed, spec

    def __call__(self, weights: dict[str, Tensor]) -> Tensor:
        def one(inputs: list[Tensor]) -> Tensor:
            given = iter(inputs)
            leaves = [next(given) if leaf is None else leaf for leaf in self.fixed]
            args, kwargs, target = pytree.tree_unflatten(leaves, self.spec)
            output = functional_call(self.rows.program.graph_module, weights, args, kwargs)
            return scalar_loss(self.rows.vectorised, output, target)

        return vmap(one, randomness="different")(self.moving)


def _guarded(losses: _Losses) -> Callable[[dict[str, Tensor]], Tensor]:
    def call(weights: dict[str, Tensor]) -> Tensor:
        try:
            return losses(weights)
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedError(
                "this network has no matrix-free products",
                where="sparsify.storage",
                why=first_line(error),
                hint="take storage='disk'",
            ) from error

    return call
