"""Magnitude: units whose weights are small go first (Li et al. 2017, with the mean square in place of the L1 norm)."""

from __future__ import annotations

import numpy as np
import torch

from .request import Request, per_unit, slice_size
from .table import Scores, Sensitivity


def estimate(request: Request) -> Sensitivity:
    """Mean square of the weights that produce a unit, over all producers of its group together.

    The mean, not the sum: a unit of a wide layer is not more important for having more weights. Needs no data. The
    score ranks; it is no loss.

    Raises:
        UserError: A weight is NaN or infinite.
    """
    groups = {}
    with torch.no_grad():
        for group in request.groups:
            squares, count = torch.zeros(group.width, dtype=torch.float64), 0
            for member in group.producers:
                weight = request.tensor(member)
                squares += per_unit(weight.double().square(), member).cpu()
                count += slice_size(weight, member)
            groups[group.name] = Scores((squares / count).numpy(), np.zeros(group.width))
    return Sensitivity("magnitude", "score", groups, {"score": "mean square of the producing weights"})
