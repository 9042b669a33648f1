"""Exact search on wide networks: on a coarse grid of levels first, then on finer ones around what was found.

A layer of 512 channels that reads 2,048 has 128 x 512 pairs of widths on a grid of four, and a mixed-integer programme
has a variable for each. What such a network needs first is the right region: the programme is solved over a few levels
of every group, and again over the levels between the neighbours of those chosen, until no level in between is left out;
then over as many levels around the choice as can be searched, as long as that finds better ones. Every choice is among
the levels of the next search, so the predicted loss never rises. The last search is optimal around its choice; over the
whole grid nothing is proven.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from .levels import sizes_of
from .problem import Choice, Problem

MOST_VARIABLES = 60_000
"""A programme with more variables than this is solved from coarse to fine."""

_FIRST = 64
_LEAST = 2

Search = Callable[[Problem, float], np.ndarray | None]
"""From a problem and a time limit in seconds to a position; None if none was found."""

Value = Callable[[Problem, np.ndarray], float]
"""What is to be small, at a position of a problem."""


def too_fine(problem: Problem) -> bool:
    """Whether the programme over all levels would be too large."""
    return variables(problem) > MOST_VARIABLES


def variables(problem: Problem) -> int:
    """Variables of the programme: one for each level, and for each combination of sizes that a cost depends on."""
    sizes: dict[object, int] = {}
    combined = {}
    for column in problem.columns:
        for term in column.terms:
            for axis in term.axes:
                if axis not in sizes:
                    sizes[axis] = len(sizes_of(axis, problem.parts))
            axes = frozenset(axis for axis in term.axes if sizes[axis] > 1)
            if len(axes) > 1:
                combined[axes] = int(np.prod([sizes[axis] for axis in axes]))
    return sum(len(part.rise) for part in problem.parts) + sum(combined.values())


def from_coarse(problem: Problem, search: Search, value: Value, *, seconds: float) -> np.ndarray | None:
    """The position that a search finds from coarse to fine, in the levels of the whole problem.

    Args:
        problem: The problem, too fine to be searched at once.
        search: Searches a problem with fewer levels.
        value: What it looks for; a later search that runs out of time may find something worse, which is not taken.
        seconds: Time limit of all searches together; each takes half of what is left.

    Returns:
        int64 [parts], or None if the coarse search found nothing.
    """
    end = time.monotonic() + seconds
    best: np.ndarray | None = None
    near: np.ndarray | None = None
    levels = [np.arange(len(choice.widths)) for choice in problem.choices]
    held = [np.array([0, len(choice.widths) - 1]) for choice in problem.choices]
    while best is None or time.monotonic() < end:
        spread = partial(_spread_all, problem.choices, levels, held)
        kept, small = _thinned(problem, spread if near is None else partial(_near, problem.choices, near))
        found = search(small, max((end - time.monotonic()) / 2, 1.0))
        if found is None:
            break
        position = found.copy()
        for i, at in enumerate(kept):
            position[i] = at[found[i]]
        if best is not None and value(problem, position) > value(problem, best):
            break
        same = best is not None and np.array_equal(position, best)
        if near is not None and same:
            break
        if near is not None or same or all(len(a) == len(b) for a, b in zip(kept, levels, strict=True)):
            near = position
        best = position
        levels = [_around(choice, at, int(i)) for choice, at, i in zip(problem.choices, kept, found, strict=False)]
        held = [np.array([position[i]]) for i in range(len(levels))]
    return best


def _thinned(problem: Problem, pick: Callable[[int], list[np.ndarray]]) -> tuple[list[np.ndarray], Problem]:
    """As many levels of each group as make a programme of the size that can be solved."""
    count = _FIRST
    while True:
        kept = pick(count)
        choices = tuple(_only(choice, at) for choice, at in zip(problem.choices, kept, strict=True))
        small = replace(problem, choices=choices)
        if count <= _LEAST or not too_fine(small):
            return kept, small
        count = max(_LEAST, count * 3 // 4)


def _spread_all(
    choices: Sequence[Choice], levels: Sequence[np.ndarray], held: Sequence[np.ndarray], count: int
) -> list[np.ndarray]:
    """At most so many of these levels of each group, and those that are held."""
    each = zip(choices, levels, held, strict=True)
    return [np.union1d(_spread(choice, some, count), always) for choice, some, always in each]


def _near(choices: Sequence[Choice], position: np.ndarray, count: int) -> list[np.ndarray]:
    """The levels of each group whose widths are nearest to that chosen, so many with an implant and without."""
    found = []
    for choice, place in zip(choices, position, strict=False):
        order = np.argsort(np.abs(choice.widths - choice.widths[place]), kind="stable")
        implanted = _implanted(choice, order)
        found.append(np.union1d(np.concatenate([order[~implanted][:count], order[implanted][:count]]), place))
    return found


def _spread(choice: Choice, levels: np.ndarray, count: int) -> np.ndarray:
    """At most so many of ascending levels, evenly, of those without an implant and of those with one."""
    implanted = _implanted(choice, levels)
    found = []
    for some in (levels[~implanted], levels[implanted]):
        if len(some) > count:
            some = some[np.unique(np.linspace(0, len(some) - 1, count).round().astype(np.int64))]
        found.append(some)
    return np.union1d(*found)


def _implanted(choice: Choice, levels: np.ndarray) -> np.ndarray:
    return np.zeros(len(levels), dtype=bool) if choice.implanted is None else choice.implanted[levels] > 0


def _around(choice: Choice, thinned: np.ndarray, place: int) -> np.ndarray:
    """Levels whose widths lie between the neighbours of the chosen one's width."""
    widths, own = choice.widths[thinned], choice.widths[thinned[place]]
    low = widths[widths < own].max(initial=0)
    high = widths[widths > own].min(initial=choice.group.width)
    return np.flatnonzero((choice.widths >= low) & (choice.widths <= high))


def _only(choice: Choice, at: np.ndarray) -> Choice:
    """The choice with these levels alone."""
    implanted, ranks = (None if amount is None else amount[at] for amount in (choice.implanted, choice.ranks))
    return replace(choice, widths=choice.widths[at], rise=choice.rise[at], implanted=implanted, ranks=ranks)
