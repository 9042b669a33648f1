"""Random square roots of the Hessian of a loss in the outputs, for outputs too many to go through one by one.

Vectors z with E[z zᵀ] = H stand in for a square root (Martens, "New Insights and Perspectives on the Natural Gradient
Method", JMLR 2020, section 6.1). How they are drawn depends on what H is, and that is found by experiment, from
products H v with random v, so that any way to write a loss is seen through: a weight a token, a mask, smoothed labels.

- Softmax cross-entropy along an axis, H = c (diag(p) - p pᵀ): z = √c (p - e_y) with the label y drawn from p.
- Diagonal (squared error, Bernoulli, Poisson …): z = √d ∘ ε with random signs ε.
- Anything else: a pair (ε, H ε), of which E[ε (H ε)ᵀ] = H; right for every H, with more variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .output_hessian import DIAGONAL, LABELS, PAIRS, OutputLoss, Pair, Root, signs

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Diagonal:
    """H of one output is diagonal: its entries, [samples, elements]."""

    entries: Tensor


@dataclass(frozen=True)
class _Softmax:
    """H of one output is weight * (diag(p) - p pᵀ) for each position.

    Attributes:
        p: Probabilities [samples, ..., classes].
        weight: [samples, ..., 1].
        axis: The axis of the classes in the output with samples first.
    """

    p: Tensor
    weight: Tensor
    axis: int


_Structure = _Diagonal | _Softmax


def drawn_root(out: OutputLoss, draws: int, seed: int) -> Root:
    """A random root of the Hessian of every sample, independent between samples.

    Labels are drawn in strata: over the draws, each class comes up as often as its probability says, to within one.

    Args:
        out: The loss in the outputs.
        draws: How many vectors.
        seed: Of the randomness.
    """
    structures = _structures(out, torch.Generator().manual_seed(seed))
    if structures is None:

        def pair(number: int) -> Pair:
            vector = signs((out.samples, out.elements), _generator(seed, number), out.outputs[0])
            return Pair(vector, out.product(vector), torch.full_like(vector[:, :1], 1 / draws))

        return Root(frozenset({PAIRS}), draws, pair)

    def square(number: int) -> Pair:
        parts = [_draw(structure, draws, seed, number, leaf) for leaf, structure in enumerate(structures)]
        left, right = (torch.cat(side, 1) for side in zip(*parts, strict=True))
        share = torch.full_like(left[:, :1], 1 / draws)
        return Pair(left, None if torch.equal(left, right) else right, share)

    kinds = frozenset(LABELS if isinstance(s, _Softmax) else DIAGONAL for s in structures)
    return Root(kinds, draws, square)


def _draw(structure: _Structure, draws: int, seed: int, number: int, leaf: int) -> tuple[Tensor, Tensor]:
    """The z of one output, and z with the signs of the Hessian: [samples, elements] each."""
    if isinstance(structure, _Diagonal):
        entries = structure.entries
        left = entries.abs().sqrt() * signs(tuple(entries.shape), _generator(seed, number, leaf), entries)
        return left, left * entries.sign()
    p = structure.p
    # A number in [0, draws) for each position, one further with each draw: in every draw the positions are independent
    # of each other, which keeps E[z zᵀ] = 0 between them, and over the draws each goes through all strata.
    start = torch.rand(p.shape[:-1], generator=_generator(seed, -1, leaf), dtype=torch.float64) * draws
    level = ((start + number) % draws / draws).to(p.device)[..., None] * p.double().sum(-1, keepdim=True)
    label = torch.searchsorted(p.double().cumsum(-1), level, right=True).clamp_(max=p.shape[-1] - 1)
    left = p.clone().scatter_add_(-1, label, torch.full_like(label, -1, dtype=p.dtype))
    left = left * structure.weight.abs().sqrt()
    right = left * structure.weight.sign()
    return left.movedim(-1, structure.axis).flatten(1), right.movedim(-1, structure.axis).flatten(1)


def _structures(out: OutputLoss, generator: torch.Generator) -> list[_Structure] | None:
    """What the Hessian is in each output; None if some output has no known structure, or two of them are coupled."""
    shape = (out.samples, out.elements)
    # Normal vectors: signs are now and then all the same over the classes, and such a vector sees nothing.
    probe, check = (torch.randn(shape, generator=generator).to(out.outputs[0]) for _ in range(2))
    products = [out.product(v) for v in (torch.ones_like(probe), probe, check)]
    ends = torch.tensor([o.numel() // out.samples for o in out.outputs]).cumsum(0)[:-1]
    split: Callable[[Tensor], tuple[Tensor, ...]] = lambda rows: rows.tensor_split(ends, 1)  # noqa: E731
    found: list[_Structure] = []
    for output, layout, *parts in zip(
        out.outputs, out.layouts, split(probe), split(check), *map(split, products), strict=True
    ):
        first, second, of_ones, of_first, of_second = parts
        pairs = ((first, of_first), (second, of_second))
        if all(_close(of_ones * v, hv) for v, hv in pairs):
            found.append(_Diagonal(of_ones))
            continue
        values = layout.split(output.detach(), out.samples)
        axes = [a for a in range(1, values.ndim) if values.shape[a] > 1]
        options = (_softmax(values, axis, pairs) for axis in axes)
        softmax = next((option for option in options if option is not None), None)
        if softmax is None:
            return None
        found.append(softmax)
    return found


def _softmax(values: Tensor, axis: int, pairs: tuple[tuple[Tensor, Tensor], ...]) -> _Softmax | None:
    """The structure of softmax cross-entropy along an axis, if the products H v are those of it.

    Args:
        values: The output, samples first.
        axis: The axis of the classes.
        pairs: v and H v; the first pair gives the weights, all of them check.
    """
    p = values.movedim(axis, -1).softmax(-1)
    weight = None
    for vector, product in pairs:
        v, hv = (x.reshape(values.shape).movedim(axis, -1) for x in (vector, product))
        model = p * (v - (p * v).sum(-1, keepdim=True))
        if weight is None:
            norm = model.square().sum(-1, keepdim=True)
            # Where one class has all the probability there is no curvature, and no way to see a weight.
            seen = norm > torch.finfo(p.dtype).eps ** 2
            weight = torch.where(
                seen, (hv * model).sum(-1, keepdim=True) / norm.clamp_min(torch.finfo(p.dtype).tiny), 0
            )
        if not _close(weight * model, hv):
            return None
    assert weight is not None
    return _Softmax(p, weight, axis)


def _close(model: Tensor, actual: Tensor) -> bool:
    return float((model - actual).norm()) <= _TOLERANCE * float(actual.norm())


def _generator(*seed: int) -> torch.Generator:
    state = np.random.SeedSequence([part + 1 for part in seed]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> 1))
