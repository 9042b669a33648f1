"""WoodFisher (Singh and Alistarh 2020, arXiv:2004.14340): optimal brain surgery with a block-diagonal empirical Fisher.

Weight q scores w_q² / (F⁻¹)_qq. The update adds up what the removal of each pruned weight alone asks for,
-F⁻¹ e_q w_q / (F⁻¹)_qq; that is not the solution for all of them together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..chita.blocks import block_spans
from ..chita.data_matrix import stored
from ..chita.stage import Stage
from .inverse_fisher import InverseFisher

BLOCK = 12288
"""Largest block of the public code; smaller tensors are one block."""


def prune(stage: Stage) -> Tensor:
    """The weights [p] after one pruning."""
    size = stage.block_size or BLOCK
    return surgery(stage, list(block_spans(stage.variables, size)))


def surgery(stage: Stage, spans: list[slice]) -> Tensor:
    """Scores all weights, prunes the least of all blocks together, and adds the single updates.

    Args:
        stage: The problem; its first-order term is not used.
        spans: The blocks.
    """
    problem = stage.problem
    matrix = stored(problem.matrix, "the inverse Fisher")
    w = problem.center
    diagonal = torch.empty_like(w, dtype=torch.float64)
    inverses = []
    for span in spans:
        inverse = InverseFisher(matrix.restrict(span), problem.ridge)
        diagonal[span] = inverse.diagonal().clamp_min(torch.finfo(torch.float32).tiny)
        inverses.append(inverse)
    keep = stage.constraint.project((w.double() / diagonal.sqrt()).float())
    single = torch.where(keep, 0.0, w.double() / diagonal)
    change = torch.cat([inverse.apply(single[span]) for span, inverse in zip(spans, inverses, strict=True)])
    return torch.where(keep, w - change.to(w.dtype), 0.0)
