"""What a search returns: a choice, and how far from the best it can be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Solution:
    """A choice of widths.

    Attributes:
        position: int64 [groups]: position of each group in its allowed widths.
        solver: Which search found it.
        rise: Its predicted rise of the loss.
        bound: No choice within the limits has a smaller one; None if the search proves nothing.
    """

    position: np.ndarray
    solver: str
    rise: float
    bound: float | None

    @property
    def gap(self) -> float | None:
        """By how much the rise may exceed the smallest possible, as a share of itself; 0 is proven optimal."""
        if self.bound is None:
            return None
        return 0.0 if self.rise <= 0 else max(self.rise - self.bound, 0.0) / self.rise
