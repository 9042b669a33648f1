"""Exact search by dynamic programming, for networks whose groups form chains and one cost that is limited.

Blocks that may be dropped count as groups here. Two groups are neighbours if a term of the cost depends on both. Where
every group has at most two neighbours and there is no cycle, the groups are taken in the order of their chains. For
each width of the last group taken, the states are the pairs (cost, predicted rise) that no other beats in both: the
multiple-choice knapsack of Sinha and Zoltners (1979), with dominance as in Nemhauser and Ullmann (1969), carried along
the chain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .levels import share
from .problem import ROUNDING, Problem
from .solution import Solution

MOST_STATES = 200_000
"""States of one group, over all its widths, beyond which the programme gives up."""


def solve(problem: Problem) -> Solution | None:
    """The widths of least predicted loss within the limit.

    Args:
        problem: The problem.

    Returns:
        The solution, proven optimal; None if the programme does not apply, has too many states, or there is no choice
        within the limit. `applies` tells the first.
    """
    order, column = _chain(problem), _limited(problem)
    if order is None or column is None:
        return None
    limit = float(problem.limits[column]) * (1 + ROUNDING)
    alone, between = _tabulate(problem, column)
    rest = _least_rest(order, alone, between)
    stages: list[list[_States]] = []
    for place, group in enumerate(order):
        rise, own = problem.parts[group].rise, alone[group]
        before = stages[-1] if place else [_States.start(float(problem.levels.constant[column]))]
        pair = between.get((order[place - 1], group)) if place else None
        stage = [
            _States.merge(
                [s.step(own[k] + (pair[i, k] if pair is not None else 0.0), rise[k], i) for i, s in enumerate(before)],
                limit - rest[place + 1],
            )
            for k in range(len(own))
        ]
        if sum(len(states.cost) for states in stage) > MOST_STATES:
            return None
        stages.append(stage)
    return _best(problem, order, stages)


def applies(problem: Problem) -> bool:
    """Whether groups form chains and at most one cost is limited."""
    return _limited(problem) is not None and _chain(problem) is not None


@dataclass(frozen=True)
class _States:
    """States of one width of one group, none of which beats another.

    Attributes:
        cost: float64 [states], ascending.
        rise: float64 [states], descending.
        width: int64 [states]: width of the group before.
        state: int64 [states]: state of that width.
    """

    cost: np.ndarray
    rise: np.ndarray
    width: np.ndarray
    state: np.ndarray

    @staticmethod
    def start(cost: float) -> _States:
        return _States(np.array([cost]), np.zeros(1), np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))

    def step(self, cost: float, rise: float, width: int) -> _States:
        count = len(self.cost)
        return _States(self.cost + cost, self.rise + rise, np.full(count, width), np.arange(count))

    @staticmethod
    def merge(parts: list[_States], limit: float) -> _States:
        """All states within a cost that no other beats."""
        joined = [
            np.concatenate([getattr(part, name) for part in parts]) for name in ("cost", "rise", "width", "state")
        ]
        cost, rise = joined[0], joined[1]
        order = np.lexsort((rise, cost))
        order = order[cost[order] <= limit]
        best_before = np.minimum.accumulate(np.concatenate([[np.inf], rise[order]]))[:-1]
        order = order[rise[order] < best_before]
        return _States(*(values[order] for values in joined))


def _limited(problem: Problem) -> int | None:
    """The one cost whose limit some choice exceeds (any if there is none); None if there are several."""
    most = problem.levels.constant + sum(
        (term.values.reshape(-1, len(problem.limits)).max(axis=0) for term in problem.levels.terms),
        np.zeros(len(problem.limits)),
    )
    limited = np.flatnonzero(most > problem.limits * (1 + ROUNDING))
    return None if len(limited) > 1 else int(limited[0]) if len(limited) else 0


def _chain(problem: Problem) -> list[int] | None:
    """All groups in an order in which neighbours follow each other, or None if there is no such order."""
    free = [len(part.rise) > 1 for part in problem.parts]
    neighbours: dict[int, set[int]] = {i: set() for i in range(len(free))}
    for groups in _groups_of_terms(problem):
        varying = [group for group in groups if free[group]]
        if len(varying) > 2:
            return None
        if len(varying) == 2:
            neighbours[varying[0]].add(varying[1])
            neighbours[varying[1]].add(varying[0])
    if any(len(found) > 2 for found in neighbours.values()):
        return None
    order: list[int] = []
    for end in [group for group, found in neighbours.items() if len(found) < 2]:
        group: int | None = end
        while group is not None and group not in order:
            order.append(group)
            group = next((other for other in sorted(neighbours[group]) if other not in order), None)
    return order if len(order) == len(free) else None  # what is left lies on a cycle


def _groups_of_terms(problem: Problem) -> Iterator[tuple[int, ...]]:
    """The parts (groups and blocks) that each term depends on."""
    for term in problem.levels.terms:
        slopes = [problem.levels.axes[axis][1] for axis in term.axes]
        yield tuple(
            i for i, part in enumerate(problem.parts) if any(slope[place] for slope in slopes for place in part.places)
        )


def _tabulate(problem: Problem, column: int) -> tuple[list[np.ndarray], dict[tuple[int, int], np.ndarray]]:
    """One cost by the level of each part, and by the levels of two neighbours (both orders)."""
    levels, parts = problem.levels, problem.parts
    alone = [np.zeros(len(part.rise)) for part in parts]
    between: dict[tuple[int, int], np.ndarray] = {}
    for term, groups in zip(levels.terms, _groups_of_terms(problem), strict=True):
        varying = [g for g in groups if len(parts[g].rise) > 1] or list(groups[:1])
        shape = tuple(len(parts[g].rise) for g in varying)
        places = dict(zip(varying, np.indices(shape).reshape(len(shape), -1), strict=True))
        at = []
        for axis in term.axes:
            size = np.full(int(np.prod(shape)), levels.axes[axis][0])
            for g in groups:
                added = share(levels.axes[axis], parts[g])
                size += added[places[g]] if g in places else added[0]
            at.append(np.searchsorted(levels.sizes[axis], size))
        values = term.values[..., column][tuple(at)].reshape(shape)
        if len(varying) == 1:
            alone[varying[0]] += values
        else:
            first, second = varying
            between[first, second] = between.get((first, second), 0.0) + values
            between[second, first] = between[first, second].T
    return alone, between


def _least_rest(order: list[int], alone: list[np.ndarray], between: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """The least that the groups from each place of the order on can cost, float64 [groups + 1]."""
    least = np.zeros(len(order) + 1)
    for place in range(len(order) - 1, -1, -1):
        pair = between.get((order[place - 1], order[place])) if place else None
        own = float(alone[order[place]].min()) + (float(pair.min()) if pair is not None else 0.0)
        least[place] = least[place + 1] + own
    return least


def _best(problem: Problem, order: list[int], stages: list[list[_States]]) -> Solution | None:
    """Walks back from the state of the least rise."""
    ends = [(float(s.rise.min()), k) for k, s in enumerate(stages[-1]) if len(s.rise)] if stages else []
    if not ends:
        return None if stages else Solution(np.zeros(0, dtype=np.int64), "dp", 0.0, 0.0)
    rise, width = min(ends)
    state = int(stages[-1][width].rise.argmin())
    position = np.zeros(len(order), dtype=np.int64)
    for place in range(len(order) - 1, -1, -1):
        position[order[place]] = width
        states = stages[place][width]
        width, state = int(states.width[state]), int(states.state[state])
    return Solution(position, "dp", problem.rise(position), rise)
