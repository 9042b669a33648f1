"""One layer, solved for in closed form: its weights from what it reads and what it should compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tail import Tail

Layer = nn.Conv1d | nn.Conv2d | nn.Linear

_EQUATIONS_PER_WEIGHT = 64
"""Places (pixels of all images) drawn for every input of a layer: more change little but the time."""

_PATCH_ELEMENTS = 1 << 24
"""Patches of so many numbers are unfolded at a time."""

_FACTOR_ELEMENTS = 1 << 27
"""Numbers of the factors that are kept while a sparse layer is solved for: 1 GiB."""

_SWEEPS = 2
"""How often a layer in front of a ReLU is solved for again, with targets below zero set to what it predicts."""


@dataclass(frozen=True)
class Targets:
    """What a layer should compute.

    Attributes:
        outputs: Those of the dense layer, by batch.
        tail: What follows the layer; None: its outputs themselves count.
        skips: By batch, the other operand of the sum that follows: in the dense network, and as it is now.
    """

    outputs: Sequence[Tensor]
    tail: Tail | None = None
    skips: Sequence[tuple[Tensor, Tensor]] | None = None

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of the tail; a channel that it silences is taken as if nothing followed."""
        assert self.tail is not None
        dead = self.tail.scale.abs() <= 1e-6 * self.tail.scale.abs().max().clamp_min(1e-30)
        like = self.outputs[0]
        scale = torch.where(dead, torch.ones_like(self.tail.scale), self.tail.scale)
        shift = torch.where(dead, torch.full_like(scale, math.inf), self.tail.shift)
        return scale.to(like.device, like.dtype), shift.to(like.device, like.dtype)

    @property
    def rectified(self) -> bool:
        """Whether only what is above zero counts."""
        return self.tail is not None and self.tail.rectified

    def rows(self, batch: int, part: slice, pick: Pick) -> tuple[Tensor, Tensor | None]:
        """Targets [places, channels], and, if rectified, the outputs at which the ReLU begins to pass anything."""
        target = pick(self.outputs[batch][part])
        if self.tail is None:
            return target, None
        scale, shift = self._factors
        silenced = torch.isinf(shift)
        now = torch.zeros((), dtype=target.dtype, device=target.device)
        if self.skips is not None:
            dense, now = (pick(value[part]) for value in self.skips[batch])
            target = target + torch.where(silenced, 0.0, (dense - now) / scale)
        if not self.rectified:
            return target, None
        return target, torch.where(silenced, math.nan, -(torch.where(silenced, 0.0, shift) + now) / scale)

    def follow(self, target: Tensor, start: Tensor, prediction: Tensor) -> Tensor:
        """Targets below the start of the ReLU set to the prediction, or to the start where that is above it."""
        sign = torch.sign(self._factors[0])
        below = sign * (target - start) <= 0.0  # never where the start is NaN
        return torch.where(below, start + sign * (sign * (prediction - start)).clamp_max(0.0), target)


def refit(
    layer: Layer,
    inputs: Sequence[Tensor],
    targets: Targets,
    ridge: float,
    generator: torch.Generator,
    free: Tensor | None = None,
) -> bool:
    """Solves Σ ‖t − W x‖² + λ ‖W − W₀‖² for the weights (and bias) of one layer, in place.

    Args:
        layer: The layer.
        inputs: What it reads, by batch.
        targets: What it should compute.
        ridge: λ over the mean diagonal of Σ x xᵀ.
        generator: Draws positions where there are more than are needed.
        free: bool, of the weight's shape: where it may change. The rest stays as it is, zeros for instance.

    Returns:
        Whether the equations were finite; if not, nothing was changed.
    """
    width = layer.weight[0].numel() + (layer.bias is not None)
    old = layer.weight.flatten(1).double()
    if layer.bias is not None:
        old = torch.cat([old, layer.bias.double()[:, None]], 1)
    places = sum(y.numel() for y in targets.outputs) // len(old)
    share = min(1.0, _EQUATIONS_PER_WEIGHT * width / places)
    picks = [Pick.draw(layer, x, y, share, generator) for x, y in zip(inputs, targets.outputs, strict=True)]
    gram, cross = old.new_zeros(width, width), old.new_zeros(len(old), width)
    for read, target, _ in _equations(layer, inputs, targets, picks):
        gram += (read.T @ read).double()
        cross += (target.T @ read).double()
    strength = ridge * float(gram.diagonal().mean())
    if not math.isfinite(strength) or not bool(torch.isfinite(cross).all()):
        return False
    if strength <= 0.0:
        return True  # Nothing reaches the layer: nothing to learn from.
    frozen = layer.bias is not None and not layer.bias.requires_grad
    if frozen and free is None:
        free = torch.ones_like(layer.weight, dtype=torch.bool)
    gram_ridge = gram + strength * torch.eye(width, dtype=gram.dtype, device=gram.device)
    if free is not None:
        free = free.to(gram.device).flatten(1)
        free = F.pad(free, (0, 1), value=not frozen) if layer.bias is not None else free
    solve = _factored(gram_ridge) if free is None else _restricted(gram_ridge, free)
    new = old + solve(cross - old @ gram)
    for _ in range(_SWEEPS if targets.rectified else 0):
        cross.zero_()
        for read, target, start in _equations(layer, inputs, targets, picks):
            assert start is not None
            prediction = read @ new.T.to(read.dtype)
            cross += (targets.follow(target, start, prediction).T @ read).double()
        new = old + solve(cross - old @ gram)
    new = new.to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.copy_(new[:, -1])
        new = new[:, :-1]
    layer.weight.copy_(new.reshape(layer.weight.shape))
    return True


def _factored(system: Tensor) -> Callable[[Tensor], Tensor]:
    """Solves right sides [rows, width] by one factorisation."""
    root = torch.linalg.cholesky(system)
    return lambda right: torch.cholesky_solve(right.T, root).T


def _restricted(system: Tensor, free: Tensor) -> Callable[[Tensor], Tensor]:
    """Solves right sides [rows, width], each in its free unknowns alone; the others are zero.

    Every row has a matrix of its own. They are kept between calls as far as memory allows.
    """
    indices = [mask.nonzero().squeeze(1) for mask in free]
    kept: dict[int, Tensor] = {}
    left = _FACTOR_ELEMENTS

    def solve(right: Tensor) -> Tensor:
        nonlocal left
        found = torch.zeros_like(right)
        for row, index in enumerate(indices):
            if not len(index):
                continue
            root = kept.get(row)
            if root is None:
                root = torch.linalg.cholesky(system[index[:, None], index])
                if root.numel() <= left:
                    kept[row] = root
                    left -= root.numel()
            found[row, index] = torch.cholesky_solve(right[row, index, None], root).squeeze(1)
        return found

    return solve


@dataclass(frozen=True)
class Pick:
    """Places of a batch that make equations.

    Attributes:
        positions: int64 [drawn], positions in an image of outputs; None for a linear layer, which takes all.
        reads: int64 [kernel, drawn], positions in the padded image of inputs that each of them reads.
    """

    positions: Tensor | None = None
    reads: Tensor | None = None

    @staticmethod
    def draw(layer: Layer, x: Tensor, y: Tensor, share: float, generator: torch.Generator) -> Pick:
        """A share of the positions, the same for all images of the batch."""
        if isinstance(layer, nn.Linear):
            return Pick()
        columns = y.shape[-1]
        count = y[0, 0].numel()
        drawn = torch.randperm(count, generator=generator)[: max(1, round(share * count))].sort().values.to(x.device)
        kernel, stride, dilation = (_two(getattr(layer, n)) for n in ("kernel_size", "stride", "dilation"))
        pads = _pads(layer)
        width = x.shape[-1] + pads[0] + pads[1]
        across = torch.arange(kernel[0], device=x.device) * dilation[0] * width
        along = torch.arange(kernel[1], device=x.device) * dilation[1]
        corner = drawn // columns * (stride[0] * width) + drawn % columns * stride[1]
        return Pick(drawn, (across[:, None] + along).reshape(-1, 1) + corner)

    def __call__(self, value: Tensor) -> Tensor:
        """An output-like value as [places, channels]."""
        if self.positions is None:
            return value.reshape(-1, value.shape[-1])
        return value.flatten(2)[..., self.positions].transpose(1, 2).flatten(0, 1)


def _equations(
    layer: Layer, inputs: Sequence[Tensor], targets: Targets, picks: Sequence[Pick]
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Inputs [places, inputs of the layer], targets [places, channels], and where their ReLU starts."""
    for batch, (x, pick) in enumerate(zip(inputs, picks, strict=True)):
        images = len(x)
        if pick.reads is not None:
            images = max(1, _PATCH_ELEMENTS // (layer.weight[0].numel() * pick.reads.shape[1]))
        for low in range(0, len(x), images):
            part = slice(low, low + images)
            yield patches(layer, x[part], pick), *targets.rows(batch, part, pick)


def patches(layer: Layer, x: Tensor, pick: Pick) -> Tensor:
    """What the layer reads at the drawn places, and a one for its bias: [places, inputs of the layer]."""
    if pick.reads is None:
        found = x.reshape(-1, x.shape[-1])
    else:
        found = F.pad(x, _pads(layer)).flatten(2)[..., pick.reads].permute(0, 3, 1, 2).flatten(0, 1).flatten(1)
    return found if layer.bias is None else F.pad(found, (0, 1), value=1.0)


def _pads(layer: Layer) -> list[int]:
    """Padding in the order of `F.pad`: last axis first, both ends."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    if isinstance(layer.padding, str):
        return [int(p) for p in layer._reversed_padding_repeated_twice]
    return [int(p) for p in reversed(layer.padding) for _ in range(2)]


def _two(values: Sequence[int]) -> tuple[int, int]:
    """A setting of a convolution for two axes."""
    return (1, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))
