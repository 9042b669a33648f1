"""Distillation: a loss that pulls the logits of a smaller network towards those of its teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import UserError


def distillation_loss(student: Any, teacher: Any, temperature: float) -> Tensor:
    """`T² KL(teacher ‖ student)` of class distributions softened by temperature T.

    Hinton, Vinyals and Dean 2015, arXiv:1503.02531.

    Args:
        student: Output of the network: a tensor of logits [batch, classes, …], or a nest of such tensors.
        teacher: Output of the teacher, of the same structure; gets no gradient.
        temperature: T; the factor T² keeps the size of gradients independent of it.

    Returns:
        Scalar: mean over samples (and positions), and over the outputs if there are several.

    Raises:
        UserError: The outputs have no logits, or those of the two differ in shape.
    """
    ours, theirs = _logits(student), _logits(teacher)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        raise UserError(
            "the teacher's outputs do not have the shape of the network's",
            where="teacher",
            why=f"{[tuple(t.shape) for t in theirs]} against {[tuple(t.shape) for t in ours]}",
            hint="distil from the dense network itself, or set distill_weight: 0",
        )
    if not ours:
        raise UserError(
            "there are no logits to distil",
            where="distill_weight",
            why="no output has the shape [batch, classes, …] with two or more classes",
            hint="set distill_weight: 0",
        )
    return torch.stack([_divergence(s, t, temperature) for s, t in zip(ours, theirs, strict=True)]).mean()


def _logits(output: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return [leaf for leaf in leaves if leaf.ndim >= 2 and leaf.shape[1] >= 2]


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    ours = F.log_softmax(student.float() / temperature, dim=1)
    theirs = F.log_softmax(teacher.detach().float() / temperature, dim=1)
    return F.kl_div(ours, theirs, log_target=True, reduction="none").sum(1).mean() * temperature**2
