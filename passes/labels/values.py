"""Labels of one value: which channel every element belongs to, and how data movement moves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Label ids of a tensor value.

    Attributes:
        ids: int64, of a shape broadcastable to `shape`: size 1 on axes along which the labels do not differ, full size
            elsewhere. 0 means "belongs to no channel".
        shape: Shape of the value at the example inputs.
    """

    ids: Tensor
    shape: tuple[int, ...]

    @staticmethod
    def none(shape: Sequence[int]) -> Labels:
        """Labels of a value without channels."""
        return Labels(torch.zeros([1] * len(shape), dtype=torch.int64), tuple(shape))

    @staticmethod
    def on_axis(shape: Sequence[int], axis: int, ids: Tensor) -> Labels:
        """Labels that differ along one axis only; `ids` is [shape[axis]] (or [1])."""
        if not bool(ids.any()):
            return Labels.none(shape)
        sizes = [1] * len(shape)
        sizes[axis] = ids.numel()
        return Labels(ids.reshape(sizes), tuple(shape))

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes along which the labels differ."""
        return tuple(axis for axis, size in enumerate(self.ids.shape) if size > 1)

    @property
    def labelled(self) -> bool:
        """Whether any element belongs to a channel."""
        return bool(self.ids.any())

    def with_rank(self, rank: int) -> Labels:
        """The same labels with axes of size 1 in front."""
        lead = (1,) * (rank - len(self.shape))
        return Labels(self.ids.reshape(lead + tuple(self.ids.shape)), lead + self.shape) if lead else self

    def along(self, axis: int) -> Tensor:
        """Ids [shape[axis]] along one axis, for labels that differ along no other."""
        return self.ids.movedim(axis, -1).reshape(-1, self.ids.shape[axis])[0].expand(self.shape[axis])


def collapse(ids: Tensor) -> Tensor:
    """Narrows axes that only repeat (stride 0) to size 1."""
    for axis, (size, stride) in enumerate(zip(ids.shape, ids.stride(), strict=True)):
        if size > 1 and stride == 0:
            ids = ids.narrow(axis, 0, 1)
    return ids


def collapse_equal(ids: Tensor) -> Tensor:
    """Narrows every axis along which the ids are equal to size 1."""
    for axis, size in enumerate(ids.shape):
        first = ids.narrow(axis, 0, 1) if size else ids
        if size > 1 and bool((ids == first).all()):
            ids = first
    return ids


def moved(labels: Labels, movement: Callable[[Tensor], Any]) -> Any:
    """Runs a view operation (permute, slice, split, expand …) on the ids.

    The operation sees the full shape, so its own constants apply; axes without labels have stride 0 and cost nothing.

    Returns:
        Labels, or a tuple of them where the operation returns several views.
    """
    out = movement(labels.ids.expand(labels.shape))
    if isinstance(out, Tensor):
        return Labels(collapse(out), tuple(out.shape))
    return tuple(Labels(collapse(part), tuple(part.shape)) for part in out)


def reshaped(labels: Labels, shape: Sequence[int]) -> Labels:
    """Labels after a row-major reshape.

    Leading and trailing axes that stay as they are are left out, so that only what is merged or split is written out.
    """
    old, new = labels.shape, tuple(shape)
    if prod(old) != prod(new) or prod(old) == 0:
        return Labels.none(new)
    shorter = min(len(old), len(new))
    head = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    tail = next((i for i in range(shorter - head) if old[-1 - i] != new[-1 - i]), shorter - head)
    front, back = labels.ids.shape[:head], labels.ids.shape[len(old) - tail :]
    middle = labels.ids.expand(*front, *old[head : len(old) - tail], *back)
    return Labels(collapse_equal(middle.reshape(*front, *new[head : len(new) - tail], *back)), new)
