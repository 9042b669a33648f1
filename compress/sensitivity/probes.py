"""Hutchinson's estimator of the Hessian's trace over every slice of weights, and its deflation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .hessian import Hessian
from .hvp import Weights
from .request import per_unit
from .stopping import Rule


def hutchinson(hessian: Hessian, rule: Rule, *, probes: int, seed: int, deflate: int = 0) -> np.ndarray:
    """v_pᵀ (Hv)_p for every slice p of the weights and probe v.

    A probe's vector is the same on every batch, so each probe gives one estimate on all data. Without a rule to stop
    there is one round of probes, otherwise the rule looks at all estimates after every round; under `torchrun` the
    processes share the probes of a round, and decide on what all of them found.

    The variance of an estimate is the sum of squares of the off-diagonal entries of its rows, which a few large
    eigenvalues make up almost alone. Deflation takes them out: see `Deflation`.

    Args:
        hessian: The operator.
        rule: When to stop.
        probes: How many at most.
        seed: Of the probes.
        deflate: Dimensions to take out, for two products each.

    Returns:
        float64 [probes, columns]: one estimate a probe; columns are the units of the first slice, then those of the
        second, and so on.
    """
    weights = hessian.weights
    width = sum(part.member.index.shape[0] for part in weights.slices)
    deflation = Deflation.of(hessian, deflate, seed) if deflate and weights.tensors else None
    values = torch.zeros(0, width, dtype=torch.float64)
    for end in rule.rounds(probes):
        first = len(values)

        def vector(i: int, first: int = first) -> list[Tensor]:
            v = signs(weights.tensors, seed, first + i)
            return deflation.project(v) if deflation else v

        def reduce(i: int, product: list[Tensor], first: int = first) -> Tensor:
            v = signs(weights.tensors, seed, first + i)
            h = deflation.project(product) if deflation else product
            return per_slice(weights, [a * b for a, b in zip(v, h, strict=True)])

        values = torch.cat([values, hessian.rows(end - first, width, vector, reduce)])
        if rule.enough(values.numpy() + (deflation.traces if deflation else 0.0)):
            break
    return values.numpy() + (deflation.traces if deflation else 0.0)


@dataclass(frozen=True)
class Deflation:
    """The part of the Hessian's diagonal that lies in a small subspace, exactly.

    With an orthonormal basis Q of what H makes of a few random vectors, and P = I - QQᵀ, H is
    QQᵀH + HQQᵀ - QQᵀHQQᵀ + PHP. The diagonal of the first three terms follows from HQ without any error, and only that
    of PHP is left to probes, which have no large eigenvalues to suffer from: the idea of Hutch++ (Meyer et al. 2021),
    for every slice in place of one trace. If Q is a bad basis the gain is lost, but the mean stays right.

    Attributes:
        basis: Q, [elements, dimensions], all weights as one vector.
        traces: float64 [columns]: traces over the slices of what is taken out.
        shapes: Shapes of the weights.
    """

    basis: Tensor
    traces: np.ndarray
    shapes: tuple[torch.Size, ...]

    @staticmethod
    def of(hessian: Hessian, dimensions: int, seed: int) -> Deflation:
        """Takes `dimensions` out, for two products each; keeps three vectors of all weights for each of them."""
        weights = hessian.weights
        shapes, dtype = tuple(t.shape for t in weights.tensors), weights.tensors[0].dtype
        size = sum(shape.numel() for shape in shapes)
        dimensions = min(dimensions, size)

        def rows(vector: Callable[[int], list[Tensor]]) -> Tensor:
            return hessian.rows(dimensions, size, vector, lambda i, h: _join(h).cpu(), dtype)

        sketch = rows(lambda i: signs(weights.tensors, seed, i, stream=1))
        basis = torch.linalg.qr(sketch.T)[0].to(weights.device)
        images = rows(lambda i: _split(basis[:, i], shapes)).T.to(weights.device)
        inner = basis.T @ images
        diagonal = (2 * basis * images - (basis @ inner) * basis).sum(1)
        return Deflation(basis, per_slice(weights, _split(diagonal, shapes)).numpy(), shapes)

    def project(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """P v."""
        whole = _join(vectors)
        return _split(whole - self.basis @ (self.basis.T @ whole), self.shapes)


def signs(tensors: Sequence[Tensor], seed: int, probe: int, *, stream: int = 0) -> list[Tensor]:
    """One Rademacher vector over all tensors, fixed by its seed, number and stream, the same on every device."""
    entropy = [seed, probe, stream] if stream else [seed, probe]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> 1))
    return [
        (torch.randint(0, 2, t.shape, generator=generator, dtype=torch.int8) * 2 - 1).to(t.device, t.dtype)
        for t in tensors
    ]


def per_slice(weights: Weights, values: Sequence[Tensor]) -> Tensor:
    """Sums elementwise values of the tensors over every slice: float64 [columns], on the CPU."""
    sums = [per_unit(values[part.tensor], part.member).double().cpu() for part in weights.slices]
    return torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64)


def _join(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


def _split(vector: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = vector.split([shape.numel() for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
