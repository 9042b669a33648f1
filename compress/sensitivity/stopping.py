"""When to stop probing: as soon as it is clear which units lie below the threshold of the budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from ...errors import UserError

LEAST = 8
"""Probes before the first decision: with fewer, the standard errors themselves are too uncertain."""


def misplaced_share(mean: np.ndarray, error: np.ndarray, keep: float, probes: int) -> float:
    """The share of units that is expected to lie on the wrong side of the threshold, between 0 and ½.

    The threshold lies halfway between the least important unit that is kept and the most important that is not. Under a
    normal model the true score of a unit at distance d from it, estimated with standard error s, lies on the other side
    with probability P(T > |d| / s), T being Student's variable: s is itself estimated, from `probes` values. Adding a
    constant to all scores or multiplying them by one changes nothing, so negative traces do not mislead it as a
    tolerance relative to the mean does.

    It is a plug-in estimate, and the noise that spreads the scores makes them look better apart than they are: for pure
    noise it says ¼ where ½ is true. Below about 0.1 that no longer matters (see the simulations among the tests).

    Args:
        mean: Estimates [units].
        error: Their standard errors [units].
        keep: Share of the units that are kept.
        probes: Values that each standard error was estimated from.
    """
    kept = round(keep * len(mean))
    if not 0 < kept < len(mean):
        return 0.0
    order = np.sort(mean)
    threshold = (order[-kept] + order[-kept - 1]) / 2
    distance = np.abs(mean - threshold)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(error > 0, distance / error, np.where(distance > 0, np.inf, 0.0))
    return float(stdtr(probes - 1, -z).mean())


@dataclass(frozen=True)
class Rule:
    """A sequential stopping rule.

    Attributes:
        combine: From estimates [probes, columns] to mean and standard error [units].
        stop: Share of units that must be on the right side of the threshold, as 0.95; None to use every probe.
        keep: Share of the units that is kept: where the threshold lies.
    """

    combine: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    stop: float | None = None
    keep: float = 0.5

    def __post_init__(self) -> None:
        """Raises UserError if a value is out of range."""
        # Pure noise is taken for 75 % right, see `misplaced_share`.
        for name, value, low in (("stop", self.stop, 0.8), ("keep", self.keep, 0.0)):
            if value is not None and not low < value < 1:
                raise UserError(
                    f"{name} must be a share between {low:g} and 1, not {value!r}",
                    where=f"rank.{name}",
                    hint="stop: 0.95 stops when 95 % of the units are on the right side; keep: 0.5 keeps half of them",
                )

    def rounds(self, most: int) -> Iterator[int]:
        """After how many probes to decide: from `LEAST` in steps of a half, so that a graph rebuilt is paid for."""
        end = most if self.stop is None else min(LEAST, most)
        while True:
            yield end
            if end >= most:
                return
            end = min(most, end + end // 2)

    def misplaced(self, values: np.ndarray) -> float:
        """Expected share of misplaced units for estimates [probes, columns]."""
        mean, error = self.combine(values)
        return misplaced_share(mean, error, self.keep, len(values))

    def enough(self, values: np.ndarray) -> bool:
        """Whether the ranking at the threshold is as certain as was asked."""
        return self.stop is not None and len(values) >= LEAST and self.misplaced(values) <= 1 - self.stop
