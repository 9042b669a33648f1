"""In which order the units of a group go, and what that is predicted to cost."""

from __future__ import annotations

import numpy as np

from ..sensitivity.table import Scores, Sensitivity


def removal_order(scores: np.ndarray, interactions: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The order of removal, and the predicted rise of the loss after each unit.

    Without interactions the units go by their scores and these add up. With them, the unit goes next that adds least
    given those already gone: removing the set S raises the loss by the sum of the entries of S x S, so that unit i adds
    its own score and twice its interactions with S.

    A step that is predicted to lower the loss counts as nothing: noise is larger than such a prediction.

    Args:
        scores: float64 [units].
        interactions: float64 [units, units] with the scores on its diagonal, or None.

    Returns:
        Units int64 [units], and rises float64 [units + 1] after none, one, … of them; they never fall.
    """
    if interactions is None:
        order = np.argsort(scores, kind="stable")
        steps = scores[order]
    else:
        order, steps = _greedy(interactions)
    return order, np.concatenate([[0.0], np.cumsum(np.maximum(steps, 0.0))])


def _greedy(interactions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    adds = interactions.diagonal().astype(np.float64)
    order, steps = np.empty(len(adds), dtype=np.int64), np.empty(len(adds))
    for place in range(len(adds)):
        unit = int(adds.argmin())
        order[place], steps[place] = unit, adds[unit]
        adds = adds + 2 * interactions[unit]
        adds[order[: place + 1]] = np.inf
    return order, steps


def own_interactions(sensitivity: Sensitivity) -> dict[str, np.ndarray]:
    """The block of interactions inside each group, by its name; empty if the method gives none."""
    found: dict[str, np.ndarray] = {}
    if sensitivity.interactions is not None:
        start = 0
        for name, scores in sensitivity.groups.items():
            end = start + len(scores.delta_loss)
            found[name] = sensitivity.interactions[start:end, start:end]
            start = end
    return found


def joint_rise(sensitivity: Sensitivity, removed: dict[str, tuple[int, ...]]) -> float:
    """Predicted rise of the loss without these units, with all interactions that the method gives."""
    if sensitivity.interactions is None:
        return float(sum(sensitivity.groups[name].delta_loss[list(u)].sum() for name, u in removed.items() if u))
    gone, start = [], 0
    for name, scores in sensitivity.groups.items():
        gone += [start + unit for unit in removed.get(name, ())]
        start += len(scores.delta_loss)
    return float(sensitivity.interactions[np.ix_(gone, gone)].sum())


def implant_rise(scores: Scores, units: tuple[int, ...], lost: float | None) -> tuple[float, float]:
    """Predicted rise of the loss by the implants of these units, and its standard error; 0 where it is not predicted.

    Args:
        scores: Those of the group.
        units: The implanted units.
        lost: Share of their scores that is lost; None if nobody knows.
    """
    if lost is None or not units:
        return 0.0, 0.0
    at = list(units)
    loss = float(np.maximum(scores.delta_loss[at], 0.0).sum())
    return lost * loss, lost * float(np.sqrt((scores.std_error[at] ** 2).sum()))
