"""How well scores agree with the true rise of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from .truth import Truth

LEAST = 6
"""Groups with fewer measured units give no correlation of their own."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of one ranking with the truth.

    Attributes:
        overall: Spearman's rank correlation over all units.
        within: The mean of the correlations inside the groups.
        found: For each share k, the part of the truly least important k that is among the k ranked lowest.
    """

    overall: float
    within: float
    found: tuple[float, ...]


def agreement(scores: np.ndarray, rise: np.ndarray, widths: Sequence[int], shares: Sequence[float]) -> Agreement:
    """Compares scores with rises; units without a rise (NaN) are left out.

    Args:
        scores: [units], higher is more important.
        rise: [units].
        widths: Of the groups, which follow one another.
        shares: Of units to be found, 0 to 1.
    """
    known = np.isfinite(rise)
    group = np.repeat(np.arange(len(widths)), widths)[known]
    scores, rise = scores[known], rise[known]
    inside = [_spearman(scores[group == g], rise[group == g]) for g in np.unique(group) if (group == g).sum() >= LEAST]
    return Agreement(
        _spearman(scores, rise),
        float(np.mean(inside)) if inside else float("nan"),
        tuple(_found(scores, rise, share) for share in shares),
    )


def ceiling(truth: Truth, variant: str, part: str) -> float:
    """Correlation that a perfect estimator would reach: what the noise of the samples leaves of it.

    The rises on two halves of the samples correlate by r; those on all samples with the rises on infinitely many by
    √(2r / (1 + r)) (Spearman and Brown).
    """
    rises = [truth.rise(variant, part, half) for half in (0, 1)]
    known = np.isfinite(rises[0])
    r = _spearman(rises[0][known], rises[1][known])
    return float(np.sqrt(max(2 * r / (1 + r), 0.0)))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Zero where one of them is constant; NaN where there is too little."""
    if len(a) < LEAST:
        return float("nan")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def _found(scores: np.ndarray, rise: np.ndarray, share: float) -> float:
    count = round(share * len(rise))
    if count == 0:
        return float("nan")
    lowest = [set(np.argsort(values, kind="stable")[:count].tolist()) for values in (scores, rise)]
    return len(lowest[0] & lowest[1]) / count
