"""The Hessian of the mean loss over all data, as an operator: products with many vectors, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...errors import UserError
from .batches import Batch, read_batches
from .chunks import Chunks
from .hvp import Weights, differentiable, gradients, product
from .request import Request
from .shards import gather, my_share


class Arithmetic(Protocol):
    """How gradients and products are computed."""

    def gradients(self, request: Request, batch: Batch, tensors: Sequence[Tensor]) -> tuple[float, list[Tensor | None]]:
        """Mean loss of a batch, and its gradient with a graph."""
        ...

    def product(
        self, gradient: Sequence[Tensor | None], tensors: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Hessian times vectors."""
        ...


class FullPrecision:
    """In the precision of the weights."""

    def gradients(self, request: Request, batch: Batch, tensors: Sequence[Tensor]) -> tuple[float, list[Tensor | None]]:
        """Mean loss of a batch, and its gradient with a graph."""
        return gradients(request, batch, tensors)

    def product(
        self, gradient: Sequence[Tensor | None], tensors: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Hessian times vectors."""
        return product(gradient, tensors, vectors)


class Hessian:
    """The Hessian of the mean loss over all samples in the weights that produce units, batch norm in evaluation mode.

    Attributes:
        weights: The variables.
        samples: Number of samples.
        batches: The data.
        chunks: In what chunks memory lets them be worked on.
        mean_loss: The loss on the data; zero before the first product.
    """

    def __init__(
        self, request: Request, weights: Weights, arithmetic: Arithmetic, *, products: int, layerwise: bool = False
    ) -> None:
        """Reads the data.

        Args:
            request: Network, data and loss.
            weights: The variables.
            arithmetic: In which precision.
            products: How many there will be, for the progress.
            layerwise: Leaves out the blocks between different tensors, which have no part in the diagonal: every
                product is one for each tensor, differentiating only its own gradient.

        Raises:
            UserError: The data cannot be used.
        """
        self.weights = weights
        self.batches = read_batches(request.loader, request.samples, request.program, weights.device)
        self.samples = sum(batch.size for batch in self.batches)
        self.chunks = Chunks(request.program.static_batch)
        self.mean_loss = 0.0
        self._request, self._arithmetic, self._layerwise = request, arithmetic, layerwise
        self._products, self._worked = products, 0.0

    def rows(
        self,
        count: int,
        width: int,
        vector: Callable[[int], list[Tensor]],
        reduce: Callable[[int, list[Tensor]], Tensor],
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """What `reduce` makes of the products with `count` vectors; complete on every process of a `torchrun`.

        The gradient's graph is built once for a batch, and all products of this call reuse it. The processes share the
        vectors; all must read the same data.

        Args:
            count: Number of vectors.
            width: Length of what `reduce` returns.
            vector: The i-th vector, one tensor for each of the weights; the same on every call.
            reduce: From i and H v to a vector [width]; linear in the second.
            dtype: Of the result.

        Returns:
            [count, width], on the CPU.

        Raises:
            UserError: Network, loss or data cannot be used, or a product is not finite.
            UnsupportedError: An operation has no second derivative.
            EnvironmentLacksError: Memory does not suffice for one sample.
        """
        mine = my_share(count)

        def work(batch: Batch) -> Tensor:
            found = torch.zeros(count, width + 1, dtype=dtype)
            loss, gradient = self._arithmetic.gradients(self._request, batch, self.weights.tensors)
            for i in mine:
                found[i, :width] = reduce(i, self._product(gradient, vector(i)))
                found[i, width] = loss
                self._tick(batch.size / self.samples * count / len(mine), loss)
            return found

        total = torch.zeros(count, width + 1, dtype=dtype)
        with differentiable(self._request.program.graph_module, self.weights.tensors):
            for batch in self.batches if len(mine) else []:
                total += self.chunks.run(batch, work) * (batch.size / self.samples)
        total = gather(total, self.weights.device)
        if not bool(torch.isfinite(total).all()):
            raise UserError(
                "a product with the Hessian is NaN or infinite",
                where="rank",
                why="the second derivative of the loss overflows",
            )
        self.mean_loss = float(total[:, width].mean()) if count else 0.0
        return total[:, :width]

    def _product(self, gradient: Sequence[Tensor | None], vectors: Sequence[Tensor]) -> list[Tensor]:
        if not self._layerwise:
            return self._arithmetic.product(gradient, self.weights.tensors, vectors)
        triples = zip(gradient, self.weights.tensors, vectors, strict=True)
        return [self._arithmetic.product([g], [t], [v])[0] for g, t, v in triples]

    def _tick(self, products: float, loss: float) -> None:
        """Progress in products times batches; a chunk that is worked on again does not lead beyond the end."""
        self._worked += products
        if self._request.progress:
            total = self._products * len(self.batches)
            self._request.progress(min(round(self._worked * len(self.batches)), total), total, loss=loss)
