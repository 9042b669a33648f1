"""Zeros that training leaves alone: a sparse network stays as sparse as it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...passes.program import Program
from .settings import TrainSettings


def zero_masks(program: Program, settings: TrainSettings) -> dict[str, Tensor]:
    """Where weights may differ from zero, bool by name of the parameter; empty if zeros are free to change.

    Only tensors with two axes or more that hold a zero are listed: a bias or a batch-norm parameter that happens to be
    zero is no decision.

    Args:
        program: The network before training.
        settings: `keep_zeros`; None keeps them if the network was sparsified.
    """
    keep = "sparsify" in program.history if settings.keep_zeros is None else settings.keep_zeros
    if not keep:
        return {}
    weights = {name: p.detach() for name, p in program.module().named_parameters() if p.ndim > 1}
    return {name: weight != 0 for name, weight in weights.items() if bool((weight == 0).any())}


def apply_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Puts the zeros back, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            module.get_parameter(name).mul_(mask)
