"""Magnitude pruning: the smallest weights become zero, the others stay as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..chita.constraints import Constraint


def prune(center: Tensor, constraint: Constraint) -> Tensor:
    """The weights [p], zero outside the pattern that keeps the largest."""
    return torch.where(constraint.project(center), center, 0.0)
