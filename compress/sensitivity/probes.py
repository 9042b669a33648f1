"""Hutchinson's estimator of the Hessian's trace over every slice of weights, probe by probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from .batches import Batch, read_batches
from .chunks import Chunks
from .hvp import Weights, differentiable, gradients, product
from .request import Request, per_unit
from .shards import gather, my_share
from .stopping import Rule


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


@dataclass(frozen=True)
class Traces:
    """Estimates of the trace of the Hessian over slices of weights.

    Attributes:
        values: float64 [probes, columns]: one estimate a probe; columns are the units of the first slice, then those of
            the second, and so on.
        samples: Samples that they are the mean of.
        batches: In how many batches.
        mean_loss: The loss on them.
        chunks: Facts about chunks that memory forced.
    """

    values: np.ndarray
    samples: int
    batches: int
    mean_loss: float
    chunks: dict[str, int]


def hutchinson(
    request: Request, weights: Weights, arithmetic: Arithmetic, rule: Rule, *, layerwise: bool = False
) -> Traces:
    """v_pᵀ (Hv)_p for every slice p and probe v, H the Hessian of the mean loss over all samples.

    A probe's vector is the same on every batch, so each probe gives one estimate on all data. The gradient's graph is
    built once for a batch and a round of probes; without a rule to stop there is one round. Under `torchrun` the
    processes share the probes of a round, and decide on what all of them found; all must read the same data.

    Args:
        request: Network, data, loss, seed, and how many probes at most.
        weights: The slices.
        arithmetic: In which precision.
        rule: When to stop; looks at all estimates so far.
        layerwise: Probes one tensor at a time: what other layers contribute to the variance falls away, for as many
            products as there are tensors. A product of late layers costs less than one of all.

    Raises:
        UserError: Data, weights or loss cannot be used, or a trace is not finite.
        UnsupportedError: An operation has no second derivative.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    batches = read_batches(request.loader, request.samples, request.program, weights.device)
    samples = sum(batch.size for batch in batches)
    columns = sum(part.member.index.shape[0] for part in weights.slices)
    chunks = Chunks(request.program.static_batch)
    parts = [[number] for number in range(len(weights.tensors))] if layerwise else [list(range(len(weights.tensors)))]
    # The last column holds the loss.
    values = torch.zeros(0, columns + 1, dtype=torch.float64)
    total = len(batches) * len(my_share(request.probes))
    worked = 0

    with differentiable(request.program.graph_module, weights.tensors):
        for end in rule.rounds(request.probes):
            first, mine = len(values), my_share(end - len(values))

            def work(batch: Batch, first: int = first, end: int = end, mine: range = mine) -> Tensor:
                nonlocal worked
                rows = torch.zeros(end - first, columns + 1, dtype=torch.float64)
                loss, gradient = arithmetic.gradients(request, batch, weights.tensors)
                rows[list(mine), -1] = loss
                for row in mine:
                    vectors = signs(weights.tensors, request.seed, first + row)
                    for part in parts:
                        _trace_into(rows[row], weights, part, vectors, gradient, arithmetic)
                    worked += batch.size
                    if request.progress:
                        request.progress(min(worked * len(batches) // samples, total), total, loss=loss)
                return rows

            rows = torch.zeros(end - first, columns + 1, dtype=torch.float64)
            for batch in batches if len(mine) else []:
                rows += chunks.run(batch, work) * (batch.size / samples)
            values = torch.cat([values, gather(rows, weights.device)])
            if not bool(torch.isfinite(values).all()):
                raise UserError(
                    "a Hessian trace is NaN or infinite",
                    where="rank",
                    why="the second derivative of the loss overflows",
                )
            if rule.enough(values[:, :-1].numpy()):
                break
    return Traces(values[:, :-1].numpy(), samples, len(batches), float(values[:, -1].mean()), chunks.facts())


def signs(tensors: Sequence[Tensor], seed: int, probe: int) -> list[Tensor]:
    """One Rademacher vector over all tensors, fixed by seed and number of the probe, the same on every device."""
    state = np.random.SeedSequence([seed, probe]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> 1))
    return [
        (torch.randint(0, 2, t.shape, generator=generator, dtype=torch.int8) * 2 - 1).to(t.device, t.dtype)
        for t in tensors
    ]


def _trace_into(
    row: Tensor,
    weights: Weights,
    part: Sequence[int],
    vectors: Sequence[Tensor],
    gradient: Sequence[Tensor | None],
    arithmetic: Arithmetic,
) -> None:
    """Fills the columns of the slices of some tensors with v_pᵀ (Hv)_p, for v zero in all other tensors."""
    chosen = [vectors[i] for i in part]
    products = arithmetic.product([gradient[i] for i in part], [weights.tensors[i] for i in part], chosen)
    elementwise = {i: v * h for i, v, h in zip(part, chosen, products, strict=True)}
    start = 0
    for piece in weights.slices:
        stop = start + piece.member.index.shape[0]
        if piece.tensor in elementwise:
            row[start:stop] = per_unit(elementwise[piece.tensor], piece.member).double().cpu()
        start = stop
