"""Observers: from the values that a quantiser sees on calibration data to the range that its grid covers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..passes.quant.grid import Grid
from ..passes.quant.modules import grid_of_range

BINS = 2048
_OUTLIERS = 1e-4
_CLIPS = 100


class Histogram:
    """Counts of values on equal bins between the smallest and the largest; the bins widen as values come in."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts = np.zeros(BINS)

    def add(self, values: Tensor) -> None:
        """Counts a batch of values, of any shape."""
        flat = values.detach().float().flatten()
        if flat.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(flat))
        self._widen(low, high)
        if self.high > self.low:
            self.counts += torch.histc(flat, BINS, self.low, self.high).double().cpu().numpy()

    @property
    def centers(self) -> np.ndarray:
        """Middle of every bin."""
        edges = np.linspace(self.low, self.high, BINS + 1)
        return (edges[:-1] + edges[1:]) / 2

    def _widen(self, low: float, high: float) -> None:
        """Makes the bins cover `low … high` and 0; old counts move to the bins that hold their old middles."""
        low, high = min(low, self.low), max(high, self.high)
        if low == self.low and high == self.high:
            return
        old = self.centers
        counts, self.low, self.high = self.counts, low, high
        places = np.clip(((old - low) / (high - low) * BINS).astype(np.int64), 0, BINS - 1)
        self.counts = np.bincount(places, weights=counts, minlength=BINS)


@dataclass(frozen=True)
class Range:
    """Range of values that a grid is to cover."""

    low: float
    high: float


def minmax(histogram: Histogram, grid: Grid, *, non_negative: bool = False) -> Range:
    """The smallest and largest value seen."""
    return Range(histogram.low, histogram.high)


def percentile(histogram: Histogram, grid: Grid, *, non_negative: bool = False) -> Range:
    """The range without the outermost 0.01 per cent of the values on either side."""
    total = histogram.counts.sum()
    if total == 0:
        return Range(0.0, 0.0)
    share = np.cumsum(histogram.counts) / total
    edges = np.linspace(histogram.low, histogram.high, BINS + 1)
    first = int(np.searchsorted(share, _OUTLIERS))
    last = int(np.searchsorted(share, 1.0 - _OUTLIERS))
    return Range(min(float(edges[first]), 0.0), max(float(edges[min(last + 1, BINS)]), 0.0))


def mse(histogram: Histogram, grid: Grid, *, non_negative: bool = False) -> Range:
    """The clipped range with the least mean squared error of rounding and clamping.

    Banner, Nahshan and Soudry 2019, arXiv:1810.05723, with the error summed over the histogram instead of a fitted
    density. Both ends shrink in steps of one per cent, first together, then each; the full range is among the
    candidates.
    """
    best = Range(histogram.low, histogram.high)
    if histogram.high == histogram.low:
        return best
    lowest = squared_error(histogram, grid, best, non_negative=non_negative)
    shares = np.arange(1, _CLIPS + 1) / _CLIPS
    for side in ("both", "low", "high"):
        for share in shares:
            low = best.low if side == "high" else histogram.low * share
            high = best.high if side == "low" else histogram.high * share
            candidate = Range(low, high)
            error = squared_error(histogram, grid, candidate, non_negative=non_negative)
            if error < lowest:
                best, lowest = candidate, error
    return best


def squared_error(histogram: Histogram, grid: Grid, covered: Range, *, non_negative: bool = False) -> float:
    """Mean squared error of putting the values on a grid that covers a range."""
    scale, zero_point = grid_of_range(grid, covered.low, covered.high, non_negative=non_negative)
    values = histogram.centers
    codes = np.clip(np.rint(values / scale) + zero_point, grid.low, grid.high)
    error = ((codes - zero_point) * scale - values) ** 2
    return float((error * histogram.counts).sum() / max(histogram.counts.sum(), 1.0))


Observer = Callable[..., Range]
"""`observer(histogram, grid, non_negative=…)` gives the range to cover."""

OBSERVERS: Mapping[str, Observer] = {"mse": mse, "minmax": minmax, "percentile": percentile}
"""Observers by name; a new one is one more entry."""
