"""Distillation: a loss that pulls the logits of a smaller network towards those of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import UserError

_IGNORED = -100
"""The label that cross entropy leaves out."""


def class_axes(output: Any, target: Any) -> list[int | None]:
    """Which axis of each output holds its classes, as far as the targets tell; None where there are none.

    An output is a distribution over classes if a target holds one class index for all else that it has (shape without
    the class axis: axis 1 as in `cross_entropy`, or the last), or shares of classes that sum to 1. A regression has
    neither, and its outputs must not go through a softmax.

    Args:
        output: A tensor, or a nest of tensors.
        target: What the loss takes; a tensor, or a nest of tensors.
    """
    targets = [leaf for leaf in pytree.tree_leaves(target) if isinstance(leaf, Tensor)]
    return [_axis_of(leaf, targets) for leaf in _floats(output)]


def distillation_loss(
    student: Any, teacher: Any, temperature: float, axes: Sequence[int | None] | None = None
) -> Tensor:
    """`T² KL(teacher ‖ student)` of class distributions softened by temperature T.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531.

    Args:
        student: Output of the network: a tensor of logits [batch, classes, …], or a nest of such tensors.
        teacher: Output of the teacher, of the same structure; gets no gradient.
        temperature: T; the factor T² keeps the size of gradients independent of it.
        axes: The class axis of each output, None for one that is no distribution; axis 1 of all that have two or more
            classes there if this is not given.

    Returns:
        Scalar: mean over samples (and positions), and over the outputs if there are several.

    Raises:
        UserError: The outputs have no logits, or those of the two differ in shape.
    """
    ours, theirs = _floats(student), _floats(teacher)
    if axes is None:
        axes = [1 if leaf.ndim >= 2 and leaf.shape[1] >= 2 else None for leaf in ours]
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        raise UserError(
            "the teacher's outputs do not have the shape of the network's",
            where="teacher",
            why=f"{[tuple(t.shape) for t in theirs]} against {[tuple(t.shape) for t in ours]}",
            hint="distil from the dense network itself, or set distill_weight: 0",
        )
    found = [
        _divergence(one, other, axis, temperature)
        for one, other, axis in zip(ours, theirs, axes, strict=True)
        if axis is not None
    ]
    if not found:
        raise UserError(
            "there are no logits to distil",
            where="distill_weight",
            why="no output has the shape [batch, classes, …] with two or more classes",
            hint="set distill_weight: 0",
        )
    return torch.stack(found).mean()


def _floats(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _axis_of(output: Tensor, targets: Sequence[Tensor]) -> int | None:
    axes = [axis for axis in (1, output.ndim - 1) if output.ndim >= 2 and output.shape[axis] >= 2]
    # A target of the output's own shape is the output's, and decides; class indices of the shape may be another's.
    for target in targets:
        if target.shape == output.shape:
            return next((axis for axis in axes if _are_shares(target, axis)), None)
    return next((axis for axis in axes for target in targets if _are_indices(target, output, axis)), None)


def _are_shares(target: Tensor, axis: int) -> bool:
    sums = target.sum(axis).float()
    return bool((target >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


def _are_indices(target: Tensor, output: Tensor, axis: int) -> bool:
    if target.is_floating_point() or target.dtype == torch.bool:
        return False
    if target.shape != (*output.shape[:axis], *output.shape[axis + 1 :]):
        return False
    named = target[target != _IGNORED]
    return bool(((named >= 0) & (named < output.shape[axis])).all())


def _divergence(student: Tensor, teacher: Tensor, axis: int, temperature: float) -> Tensor:
    ours = F.log_softmax(student.float() / temperature, dim=axis)
    theirs = F.log_softmax(teacher.detach().float() / temperature, dim=axis)
    return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(axis).mean() * temperature**2
