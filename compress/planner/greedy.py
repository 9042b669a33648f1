"""Greedy search: cut where the least predicted loss buys the most, then give back and exchange what fits."""

from __future__ import annotations

import numpy as np

from .problem import Problem


def greedy(problem: Problem) -> np.ndarray:
    """Chooses widths by predicted loss for cost saved.

    Cuts from full width until all budgets hold, gives back what fits, and then improves: every group in turn is held
    one step narrower or wider while the others are cut and given back around it; what lowers the predicted loss stays.

    Args:
        problem: One whose smallest widths are within the limits.

    Returns:
        int64 [groups]: position of each group in its allowed widths.
    """
    start = problem.first
    position = give_back(problem, cut(problem, start))
    improved = True
    while improved:
        improved = False
        for held in range(len(position)):
            for step in (1, -1):
                trial = position.copy()
                trial[held] += step
                if not 0 <= trial[held] <= problem.last[held]:
                    continue
                trial = give_back(problem, cut(problem, trial, held), held)
                # By more than rounding, so that the search ends.
                gained = problem.rise(position) - problem.rise(trial)
                if problem.fits(trial[None])[0] and gained > 1e-9 * abs(problem.rise(position)):
                    position, improved = trial, True
    return position


def cut(problem: Problem, position: np.ndarray, held: int | None = None) -> np.ndarray:
    """Narrows groups until all budgets hold, or nothing is left to cut.

    Every move takes one group to its next allowed width. Its gain is the share of each overrun that it removes (never
    more than is left of it), summed over the budgets that do not hold yet; the least predicted loss per gain goes
    first.

    Among moves without a predicted rise, which are free, the largest gain goes first.

    Args:
        problem: The problem.
        position: Where to start.
        held: A group that stays as it is.
    """
    position = position.copy()
    cost = problem.costs(position[None])[0]
    while not problem.fits(position[None])[0]:
        moves = np.flatnonzero(position < problem.last)
        moves = moves[moves != held]
        if not len(moves):
            break
        after = problem.costs(position + _one_hot(moves, len(position)))
        over = np.maximum(cost - problem.limits, 0.0)
        gain = (np.minimum(cost - after, over) / np.where(over > 0, over, np.inf)).sum(axis=1)
        rise = _rises(problem, position, position + 1, moves)
        # A move that saves nothing that counts comes last, even if it is free.
        price = np.full(len(moves), np.inf)
        np.divide(rise, gain, out=price, where=gain > 0)
        best = np.lexsort((moves, -gain, price))[0]
        position[moves[best]] += 1
        cost = after[best]
    return position


def give_back(problem: Problem, position: np.ndarray, held: int | None = None) -> np.ndarray:
    """Widens groups, one step at a time and the dearest loss first, as long as the budgets hold."""
    position = position.copy()
    while True:
        moves = np.flatnonzero(position > 0)
        moves = moves[moves != held]
        regained = _rises(problem, position - 1, position, moves)
        fits = problem.fits(position - _one_hot(moves, len(position)))
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


def _rises(problem: Problem, before: np.ndarray, after: np.ndarray, moves: np.ndarray) -> np.ndarray:
    """Predicted rise [moves] of taking each of these groups from one position to another."""
    return np.array([problem.choices[i].rise[after[i]] - problem.choices[i].rise[before[i]] for i in moves])


def _one_hot(moves: np.ndarray, width: int) -> np.ndarray:
    """int64 [moves, width] with a one per row."""
    return (moves[:, None] == np.arange(width)).astype(np.int64)
