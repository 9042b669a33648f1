"""The loss as a function of the network's outputs alone: its gradient, and square roots of its Hessian per sample.

A Gauss-Newton matrix is Jᵀ H J with J the derivative of the outputs and H the Hessian of the loss in them, one block a
sample. With H = Σ_r s_r z_r z_rᵀ it is Σ_r s_r (Jᵀz_r)(Jᵀz_r)ᵀ: one backward pass a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import Refused, UnsupportedError, UserError
from ...passes.gates import refusal
from ...passes.sample_axis import SampleAxis
from ..data import LossFn, scalar_loss
from .hvp import second_derivatives

_ROUNDING = 1e-3

EIGENVECTORS = "eigenvectors"
LABELS = "labels drawn from softmax"
DIAGONAL = "signs on a diagonal"
PAIRS = "pairs of random signs and their products"
KINDS = (EIGENVECTORS, LABELS, DIAGONAL, PAIRS)
"""How the vectors of a root are found."""


@dataclass(frozen=True)
class Pair:
    """One term of a sum that makes up the Hessian of every sample: weight * left rightᵀ.

    Attributes:
        left: [samples, elements].
        right: Of the same shape; None where it is `left`.
        weight: [samples, 1].
    """

    left: Tensor
    right: Tensor | None
    weight: Tensor


@dataclass(frozen=True)
class Root:
    """A sum of pairs that is the Hessian of every sample, exactly or in expectation.

    Attributes:
        kinds: How the vectors were found, of `KINDS`.
        count: Number of pairs.
        pair: Makes one of them, always the same for the same number.
        negative: Samples with negative curvature, as far as known.
    """

    kinds: frozenset[str]
    count: int
    pair: Callable[[int], Pair]
    negative: int = 0


@dataclass(frozen=True)
class OutputLoss:
    """The loss of a batch in the elements of the network's outputs.

    Attributes:
        value: The loss.
        outputs: The floating point outputs that the loss depends on, cut off from the network.
        layouts: Where the samples lie in each.
        places: Their places among the leaves of the output.
        gradients: Of the loss in each of them, with a graph where the loss is not linear.
        samples: Number of samples.
    """

    value: float
    outputs: tuple[Tensor, ...]
    layouts: tuple[SampleAxis, ...]
    places: tuple[int, ...]
    gradients: tuple[Tensor, ...]
    samples: int

    @property
    def elements(self) -> int:
        """Number of elements of the outputs of one sample."""
        return sum(output.numel() for output in self.outputs) // self.samples

    def rows(self, values: Sequence[Tensor]) -> Tensor:
        """Values of the shapes of the outputs as [samples, elements]."""
        return rows_of(values, self.layouts, self.samples)

    def slope(self) -> Tensor:
        """Gradient of the loss of each sample, of which the batch's is the mean: [samples, elements]."""
        return self.samples * self.rows([g.detach() for g in self.gradients])

    def product(self, vectors: Tensor) -> Tensor:
        """H v of each sample for v and result [samples, elements]."""
        if not any(g.requires_grad for g in self.gradients):
            return torch.zeros_like(vectors)
        gradient = self.rows(self.gradients)
        with second_derivatives():
            found = torch.autograd.grad(
                gradient, self.outputs, grad_outputs=self.samples * vectors, retain_graph=True, allow_unused=True
            )
        return self.rows(
            [torch.zeros_like(o) if f is None else f for o, f in zip(self.outputs, found, strict=True)]
        ).detach()

    def curved(self, generator: torch.Generator) -> bool:
        """Whether the loss has a second derivative that is not zero.

        Raises:
            UnsupportedError: It has entries between two samples.
        """
        vectors = signs((self.samples, self.elements), generator, self.outputs[0])
        own = self.product(vectors).abs().max()
        vectors[1::2] = 0
        if self.samples > 1 and bool(self.product(vectors)[1::2].abs().max() > _ROUNDING * own):
            raise UnsupportedError(
                "the loss couples the samples of a batch",
                where="loss",
                why="its second derivative between the outputs of two samples is not zero",
                hint="rank by gate-fisher or taylor, or give a loss that is a mean over samples",
            )
        return bool(own > 0)

    def exact_root(self) -> Root:
        """Eigenvectors of the Hessian of each sample, scaled; as many as some sample needs."""
        columns = []
        for element in range(self.elements):
            unit = torch.zeros(self.samples, self.elements, dtype=self.outputs[0].dtype, device=self.outputs[0].device)
            unit[:, element] = 1
            columns.append(self.product(unit))
        hessian = torch.stack(columns, 2).double()
        values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2)
        order = values.abs().argsort(1, descending=True)
        values = values.gather(1, order)
        vectors = vectors.gather(2, order[:, None].expand_as(vectors))
        negligible = torch.finfo(self.outputs[0].dtype).eps * self.elements * float(values.abs().max())
        rank = int((values.abs() > negligible).any(0).sum())
        scaled = (vectors * values.abs().sqrt()[:, None]).to(self.outputs[0].dtype)
        pairs = [Pair(scaled[:, :, r], None, values[:, r : r + 1].sign().to(scaled.dtype)) for r in range(rank)]
        return Root(frozenset({EIGENVECTORS}), rank, pairs.__getitem__, int((values < -negligible).any(1).sum()))


def output_loss(
    loss: LossFn,
    leaves: Sequence[Any],
    spec: Any,
    layouts: Sequence[SampleAxis | Refused | None],
    target: Any,
    samples: int,
    *,
    temperature: float = 1.0,
) -> OutputLoss:
    """Evaluates the loss on outputs that are cut off from the network.

    At a temperature T it is evaluated where the outputs are 1/T of what they are; the Hessian there is that of
    T² · loss(outputs / T) in the outputs.

    Args:
        loss: Mean loss of a batch.
        leaves: Leaves of the output.
        spec: How they are nested.
        layouts: Where the samples lie in each leaf.
        target: Whatever the loss takes.
        samples: Number of samples.
        temperature: T.

    Raises:
        UserError: The loss fails, is no finite scalar, or does not depend on the outputs.
        UnsupportedError: It depends on an output that mixes the samples of a batch.
    """
    free = [
        (leaf.detach() / temperature).requires_grad_() if _differentiable(leaf) else _detached(leaf) for leaf in leaves
    ]
    with torch.enable_grad():
        value = scalar_loss(loss, pytree.tree_unflatten(free, spec), target)
        if not bool(torch.isfinite(value)):
            raise UserError(
                f"the loss is {float(value.detach())}",
                where="loss",
                why="weights, inputs or targets hold extreme values, NaN or infinity",
                hint="evaluate the dense model on this data first",
            )
        variables = [place for place, leaf in enumerate(free) if _differentiable(leaf)]
        found: Sequence[Tensor | None] = [None] * len(variables)
        if value.requires_grad:
            inputs = [free[place] for place in variables]
            found = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    used = [(place, gradient) for place, gradient in zip(variables, found, strict=True) if gradient is not None]
    if not used:
        raise UserError(
            "the loss has no gradient",
            where="loss",
            why="it does not depend on the outputs of the network, or was detached",
            hint="return a differentiable loss",
        )
    known = []
    for place, _ in used:
        layout = layouts[place]
        if not isinstance(layout, SampleAxis):
            raise refusal(layout or Refused("an output has no samples", "output of the network"))
        known.append(layout)
    places = tuple(place for place, _ in used)
    outputs = tuple(free[place] for place in places)
    return OutputLoss(float(value.detach()), outputs, tuple(known), places, tuple(g for _, g in used), samples)


def rows_of(values: Sequence[Tensor], layouts: Sequence[SampleAxis], samples: int) -> Tensor:
    """Values of some outputs as [samples, elements of all of them]."""
    parts = [layout.split(value, samples).flatten(1) for value, layout in zip(values, layouts, strict=True)]
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def signs(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Random signs, the same on every device."""
    drawn = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1
    return drawn.to(like.device, like.dtype)


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
