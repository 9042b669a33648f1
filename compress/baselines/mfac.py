"""M-FAC (Frantar, Kurtic and Alistarh 2021, arXiv:2107.03356): WoodFisher's surgery with the whole Fisher as one block.

Its static algorithm keeps h_i and d_i of the recursion over the gradients instead of a matrix; `InverseFisher` shows
that these are a Cholesky factor, and computes them so. Gradients are taken anew in stages that each remove the same
share of what is left.
"""

from __future__ import annotations

from torch import Tensor

from ..chita.blocks import block_spans
from ..chita.stage import Stage
from .woodfisher import surgery


def prune(stage: Stage) -> Tensor:
    """The weights [p] after one stage."""
    if stage.block_size is None:
        return surgery(stage, [slice(0, stage.variables.size)])
    return surgery(stage, list(block_spans(stage.variables, stage.block_size)))
