"""Greedy search: cut where the least predicted loss buys the most, until the budgets hold; then give back what fits."""

from __future__ import annotations

import numpy as np

from .problem import Problem


def greedy(problem: Problem) -> np.ndarray:
    """Chooses widths by predicted loss for cost saved.

    Every move takes one group to its next allowed width; its gain is the share of each overrun that it removes (never
    more than is left of it), summed over the budgets that do not hold yet. The move with the least predicted loss per
    gain is taken until all budgets hold. Then units are given back, dearest loss first, as long as they fit.

    Predicted rises may be negative (Hutchinson's traces are, where noise is larger than the trace). A negative price
    would prefer the *smallest* saving, so moves without a predicted rise are free, and among free moves the largest
    gain goes first.

    Args:
        problem: One whose smallest widths are within the limits.

    Returns:
        int64 [groups]: position of each group in its allowed widths.
    """
    position = np.zeros(len(problem.choices), dtype=np.int64)
    cost = problem.costs(position[None])[0]
    while (cost > problem.limits).any():
        moves = np.flatnonzero(position < problem.last)
        after = problem.costs(position + _one_hot(moves, len(position)))
        over = np.maximum(cost - problem.limits, 0)
        gain = (np.minimum(cost - after, over) / np.maximum(over, 1)).sum(axis=1)
        rise = np.maximum(_rises(problem, position, moves), 0.0)
        # A move that saves nothing that counts comes last, even if it is free.
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where(gain > 0, rise / gain, np.inf)
        best = np.lexsort((moves, -gain, price))[0]
        position[moves[best]] += 1
        cost = after[best]
    return give_back(problem, position)


def give_back(problem: Problem, position: np.ndarray) -> np.ndarray:
    """Widens groups, one step at a time and the dearest loss first, as long as the budgets hold."""
    position = position.copy()
    while True:
        moves = np.flatnonzero(position > 0)
        regained = _rises(problem, position - 1, moves, of=position)
        fits = problem.fits(position - _one_hot(moves, len(position))) & (regained > 0)
        if not fits.any():
            return position
        moves, regained = moves[fits], regained[fits]
        position[moves[np.lexsort((moves, -regained))[0]]] -= 1


def threshold(problem: Problem) -> np.ndarray:
    """HAP's order: one threshold on the sensitivity of all units of all groups.

    Each group keeps the units above the threshold, rounded up to its next allowed width; the lowest threshold at which
    all budgets hold is taken.

    Args:
        problem: One whose smallest widths are within the limits.

    Returns:
        int64 [groups]: position of each group in its allowed widths.
    """
    scored = [choice.scores.delta_loss for choice in problem.choices if choice.scores is not None]
    levels = np.unique(np.concatenate([[-np.inf], *scored]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        if problem.fits(_above(problem, levels[middle])[None])[0]:
            high = middle
        else:
            low = middle + 1
    return _above(problem, levels[low])


def _above(problem: Problem, level: float) -> np.ndarray:
    """Positions at which each group keeps at least its units above a level."""
    position = np.zeros(len(problem.choices), dtype=np.int64)
    for i, choice in enumerate(problem.choices):
        if choice.scores is not None:
            kept = int((choice.scores.delta_loss > level).sum())
            position[i] = int((choice.widths >= kept).sum()) - 1
    return position


def _rises(problem: Problem, position: np.ndarray, moves: np.ndarray, of: np.ndarray | None = None) -> np.ndarray:
    """Predicted rise [moves] of taking each of these groups from `position` one step down (or to `of`)."""
    to = position + 1 if of is None else of
    return np.array([problem.choices[i].rise[to[i]] - problem.choices[i].rise[position[i]] for i in moves])


def _one_hot(moves: np.ndarray, width: int) -> np.ndarray:
    """int64 [moves, width] with a one per row."""
    return (moves[:, None] == np.arange(width)).astype(np.int64)
