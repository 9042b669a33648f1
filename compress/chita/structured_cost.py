"""What a selection of units costs, and the steps in which groups shrink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Widths:
    """The groups that may shrink, and what their widths cost.

    Attributes:
        group_of: int64 [units]: the group of each unit.
        step: int64 [groups]: units by which a group shrinks at a time.
        least: int64 [groups]: widths below which none goes.
        costs: From widths int64 [choices, groups] to costs [choices, kinds].
        limits: float64 [kinds].
    """

    group_of: np.ndarray
    step: np.ndarray
    least: np.ndarray
    costs: Callable[[np.ndarray], np.ndarray]
    limits: np.ndarray

    def widths(self, removed: np.ndarray) -> np.ndarray:
        """Units [groups] that stay."""
        return np.bincount(self.group_of[~removed], minlength=len(self.step))

    def fits(self, widths: np.ndarray) -> bool:
        """Whether the limits hold."""
        return bool((self.costs(widths[None])[0] <= self.limits).all())

    def narrower(self, widths: np.ndarray, held: int | None = None) -> np.ndarray:
        """Groups that can take a step down, but for one that is held."""
        able = widths - self._down(widths) >= self.least
        if held is not None:
            able[held] = False
        return np.flatnonzero(able)

    def wider(self, widths: np.ndarray, held: int | None = None) -> np.ndarray:
        """Groups that can take a step up within the limits, but for one that is held."""
        full = np.bincount(self.group_of, minlength=len(self.step))
        able = np.flatnonzero(widths < full)
        able = able[able != held]
        after = widths + np.where(np.arange(len(widths)) == able[:, None], self.up(widths), 0)
        return able[(self.costs(after) <= self.limits).all(axis=1)] if len(able) else able

    def gains(self, widths: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """The share of every overrun that a step down of each of these groups removes, summed: float64 [groups]."""
        cost = self.costs(widths[None])[0]
        over = np.maximum(cost - self.limits, 0.0)
        after = self.costs(widths - np.where(np.arange(len(widths)) == groups[:, None], self._down(widths), 0))
        return (np.minimum(cost - after, over) / np.maximum(over, 1e-30)).sum(axis=1)

    def down(self, widths: np.ndarray, group: int) -> int:
        """Units of the next step down of a group: to the next multiple of its step."""
        return int(self._down(widths)[group])

    def up(self, widths: np.ndarray) -> np.ndarray:
        """Units [groups] of the next step up, at most to the full width."""
        full = np.bincount(self.group_of, minlength=len(self.step))
        return np.minimum(self.step - widths % self.step, full - widths)

    def _down(self, widths: np.ndarray) -> np.ndarray:
        return np.where(widths % self.step > 0, widths % self.step, self.step)
