"""Random scores: the baseline that every other method has to beat."""

from __future__ import annotations

import hashlib

import numpy as np

from .request import Request
from .table import Scores, Sensitivity


def estimate(request: Request) -> Sensitivity:
    """Uniform scores in [0, 1), fixed by the seed and the name of the group; no loss, and no data needed."""
    groups = {}
    for group in request.groups:
        name = int.from_bytes(hashlib.sha256(group.name.encode()).digest()[:8], "little")
        scores = np.random.default_rng([request.seed, name]).random(group.width)
        groups[group.name] = Scores(scores, np.zeros(group.width))
    return Sensitivity("random", "score", groups, {"seed": request.seed})
