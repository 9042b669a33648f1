"""The 2:4 pattern: of four weights that follow each other along the input channels, two are zero."""

from __future__ import annotations

import numpy as np


def two_of_four(weight: np.ndarray, axis: int) -> str:
    """Why a weight has no 2:4 pattern; empty if it has.

    Args:
        weight: Weights or their codes, any shape.
        axis: Axis of the input channels.
    """
    channels = weight.shape[axis]
    if channels % 4:
        return f"{channels} input channels are no multiple of 4"
    fours = np.moveaxis(weight, axis, -1).reshape(-1, 4)
    dense = int((np.count_nonzero(fours, axis=1) > 2).sum())
    return f"{dense:,} of {len(fours):,} groups of four weights have more than two that are not zero" if dense else ""
