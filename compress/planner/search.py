"""The searches by name, and which of them a plan takes by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import dynamic, milp
from .greedy import greedy, threshold
from .problem import Problem
from .solution import Solution


def by_gain(problem: Problem, seconds: float) -> Solution | None:
    """`greedy`, if what it finds is within the limits."""
    position = greedy(problem)
    return Solution(position, "gain", problem.rise(position), None) if problem.fits(position[None])[0] else None


def by_sensitivity(problem: Problem, seconds: float) -> Solution | None:
    """`threshold`, if what it finds is within the limits."""
    position = threshold(problem)
    return Solution(position, "sensitivity", problem.rise(position), None) if problem.fits(position[None])[0] else None


def by_milp(problem: Problem, seconds: float) -> Solution | None:
    """`milp.solve`; if it finds nothing in time, any choice within the limits."""
    found = milp.solve(problem, seconds=seconds)
    if found is not None:
        return found
    position = milp.nearest(problem, seconds=seconds)
    if position is None or not problem.fits(position[None])[0]:
        return None
    return Solution(position, "milp", problem.rise(position), 0.0)


def exactly(problem: Problem, seconds: float) -> Solution | None:
    """The dynamic programme where it applies, else the mixed-integer programme."""
    found = dynamic.solve(problem) if dynamic.applies(problem) else None
    return found or by_milp(problem, seconds)


Search = Callable[[Problem, float], Solution | None]

SEARCHES: Mapping[str, Search] = {
    "auto": exactly,
    "milp": by_milp,
    "gain": by_gain,
    "sensitivity": by_sensitivity,
}
"""Searches by name: from a problem and a time limit in seconds to a solution, or None if none is within the limits."""

RULES_OF_THUMB = frozenset({"gain", "sensitivity"})
"""Searches that know widths alone, and that take every cut for a gain."""

COUNTED = frozenset({"params", "macs"})
"""Budgets whose cost falls with every cut."""


def chosen(by: str, budgets: frozenset[str], beside: bool = False) -> str:
    """The name of the search that is really taken.

    `auto` searches exactly where a budget is on something that is measured: a narrower layer may be slower there, and
    no rule of thumb holds. Counts alone fall with every cut, and `gain` comes within a per cent or two of the optimum.
    What is chosen beside widths, implants and blocks, rules of thumb do not know.
    """
    return "gain" if by == "auto" and budgets <= COUNTED and not beside else by
