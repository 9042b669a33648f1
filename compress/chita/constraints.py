"""Which zero patterns are allowed: projections onto them, and who competes with whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from ...errors import UserError
from .variables import Variable, Variables


class Constraint(Protocol):
    """A set of zero patterns."""

    def project(self, values: Tensor) -> Tensor:
        """The pattern whose kept values have the largest sum of squares.

        Args:
            values: [p].

        Returns:
            bool [p]: kept.
        """
        ...

    def rivals(self, gradient: Tensor, support: Tensor) -> Tensor | None:
        """For every weight the largest |gradient| outside the support that could take its place.

        Args:
            gradient: [p].
            support: bool [p].

        Returns:
            [p], or broadcastable to it; None if the set is not made of such choices.
        """
        ...


@dataclass(frozen=True)
class TopK:
    """The k largest of all weights together; every tensor keeps some.

    Attributes:
        kept: k.
        spans: Where the tensors lie.
        floor: What every tensor keeps at least, so that no layer is cut off from the rest.
    """

    kept: int
    spans: tuple[slice, ...]
    floor: int = 1

    def project(self, values: Tensor) -> Tensor:
        """See `Constraint`."""
        size = values.abs().clone()
        mask = torch.zeros_like(size, dtype=torch.bool)
        for span in self.spans if self.floor else ():
            part = size[span]
            mask[span] |= _largest(part, min(self.floor, len(part)))
        size[mask] = -1.0
        return mask | _largest(size, max(0, self.kept - int(mask.sum())))

    def rivals(self, gradient: Tensor, support: Tensor) -> Tensor:
        """See `Constraint`."""
        outside = gradient.abs().masked_fill(support, 0.0)
        return outside.max() if outside.numel() else outside.new_zeros(())

    @classmethod
    def of(cls, variables: Variables, sparsity: float) -> TopK:
        """Keeps floor((1 - sparsity) p).

        Raises:
            UserError: Sparsity is out of range, or not one weight a tensor would be left.
        """
        check_sparsity(sparsity)
        kept = int((1.0 - sparsity) * variables.size + 1e-6)
        if kept < len(variables.items):
            raise UserError(
                f"a sparsity of {sparsity} would empty whole layers",
                where="sparsify.sparsity",
                why=f"{kept} weights would be left for {len(variables.items)} layers",
                hint=f"at most {1 - len(variables.items) / variables.size:.6g}",
            )
        return cls(kept, tuple(item.span for item in variables))


@dataclass(frozen=True)
class PerLayer:
    """The k_l largest of every tensor.

    Attributes:
        kept: k_l by tensor.
        spans: Where the tensors lie.
    """

    kept: tuple[int, ...]
    spans: tuple[slice, ...]

    def project(self, values: Tensor) -> Tensor:
        """See `Constraint`."""
        mask = torch.zeros_like(values, dtype=torch.bool)
        for span, kept in zip(self.spans, self.kept, strict=True):
            mask[span] = _largest(values[span].abs(), kept)
        return mask

    def rivals(self, gradient: Tensor, support: Tensor) -> Tensor:
        """See `Constraint`."""
        outside = gradient.abs().masked_fill(support, 0.0)
        found = torch.zeros_like(outside)
        for span in self.spans:
            found[span] = outside[span].max()
        return found

    @classmethod
    def of(cls, variables: Variables, sparsity: float) -> PerLayer:
        """The same share of every tensor, at least one weight of each."""
        check_sparsity(sparsity)
        kept = tuple(max(1, int((1.0 - sparsity) * item.size + 1e-6)) for item in variables)
        return cls(kept, tuple(item.span for item in variables))


@dataclass(frozen=True)
class Blocks:
    """Whole blocks of weights, the best of all tensors together by their sum of squares.

    Attributes:
        owner: int64 [p]: number of the block of every weight.
        sizes: float32 [blocks]: weights in each.
        edges: Number of the first block of every tensor, and the number of blocks.
        budget: Weights that may be kept.
    """

    owner: Tensor
    sizes: Tensor
    edges: tuple[int, ...]
    budget: int

    def project(self, values: Tensor) -> Tensor:
        """See `Constraint`; blocks are taken by mean square while they fit (exact where all are of one size).

        The best block of every tensor is kept first, so that no layer is cut off from the rest.
        """
        owner, sizes = self.owner.to(values.device), self.sizes.to(values.device)
        energy = torch.zeros_like(sizes).index_add_(0, owner, values.square())
        mean = energy / sizes
        for low, high in pairwise(self.edges):
            mean[low + int(mean[low:high].argmax())] = torch.inf
        order = torch.argsort(mean, descending=True, stable=True)
        fits = sizes[order].double().cumsum(0) <= self.budget + 0.5
        kept = torch.zeros(len(self.sizes), dtype=torch.bool, device=values.device)
        kept[order[fits]] = True
        return kept[owner]

    def rivals(self, gradient: Tensor, support: Tensor) -> None:
        """Blocks win by sums, so that no single weight decides."""
        return None

    @classmethod
    def of(cls, variables: Variables, sparsity: float, shape: Sequence[int] = (4, 1)) -> Blocks:
        """Blocks of some output times some input channels (and one position of the kernel).

        Blocks at an edge that they do not divide are smaller.

        Raises:
            UserError: Shape or sparsity are out of range.
        """
        check_sparsity(sparsity)
        if len(shape) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in shape):
            raise UserError(
                f"a block is two whole numbers, not {shape!r}", where="sparsify.block", hint="block: [4, 1]"
            )
        owners, edges, count = [], [0], 0
        for item in variables:
            found = _block_numbers(item, int(shape[0]), int(shape[1]))
            owners.append(found.reshape(-1) + count)
            count += int(found.max()) + 1
            edges.append(count)
        owner = torch.cat(owners)
        sizes = torch.bincount(owner, minlength=count).float()
        made = cls(owner, sizes, tuple(edges), int((1.0 - sparsity) * variables.size + 1e-6))
        largest = sum(float(sizes[low:high].max()) for low, high in pairwise(edges))
        if largest > made.budget:
            raise UserError(
                f"a sparsity of {sparsity} in blocks of {shape[0]} x {shape[1]} would empty whole layers",
                where="sparsify.block",
                why=f"one block a layer holds {largest:.0f} weights, {made.budget} would be left",
                hint="smaller blocks, or a lower sparsity",
            )
        return made


def check_sparsity(sparsity: float) -> None:
    """Refuses what is no share of weights between 0 and 1.

    Raises:
        UserError: It is none.
    """
    number = isinstance(sparsity, int | float) and not isinstance(sparsity, bool)
    if not number or not 0.0 < sparsity < 1.0:
        why = "nothing would change" if sparsity == 0 else "nothing would be left" if sparsity == 1 else ""
        raise UserError(
            f"the sparsity must lie between 0 and 1, not {sparsity!r}",
            where="sparsify.sparsity",
            why=why or "it is the share of weights that become zero",
            hint="0.7 removes 70 %",
        )


def _largest(values: Tensor, count: int) -> Tensor:
    """bool: exactly so many of the largest."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    if count > 0:
        mask[values.topk(min(count, len(values)), sorted=False).indices] = True
    return mask


def _block_numbers(item: Variable, outputs: int, inputs: int) -> Tensor:
    """int64 of the shape of the tensor: number of the block, counted from 0."""
    rows, columns = item.shape[1 - item.input_axis], item.shape[item.input_axis]
    rest = item.size // (rows * columns)
    wide = -(-columns // inputs)
    row = torch.arange(rows)[:, None, None] // outputs
    column = torch.arange(columns)[None, :, None] // inputs
    found = (row * wide + column) * rest + torch.arange(rest)[None, None, :]
    return (found if item.input_axis == 1 else found.transpose(0, 1)).reshape(item.shape)
