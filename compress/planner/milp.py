"""Exact search as a mixed-integer programme, solved by HiGHS through scipy.

The cost of a layer depends on its width in *and* its width out, so it is not linear in either. It is made so in the
usual way: one 0/1 variable for each level of each part (the allowed widths of a group, with and without implants; a
block that stays or goes) and for each size of an axis that several parts lie on, and for each layer one weight for each
pair of sizes. The weights of a layer have the variables of its axes as marginals; as those pick one size each, the
weights pick one pair, and they need not be integer variables themselves.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from .coarse import from_coarse, too_fine
from .levels import share
from .problem import Problem
from .solution import Solution

TIME_LIMIT = 60.0
"""Seconds that a search may take."""

PROVEN = 1e-5
"""A gap that is no larger counts as proven optimal: it is within the solver's tolerances."""

_GAP = 1e-6
_OPTIMAL, _OUT_OF_TIME, _INFEASIBLE = 0, 1, 2
_TIGHTER = (0.0, 1e-6)


def solve(problem: Problem, *, seconds: float = TIME_LIMIT) -> Solution | None:
    """The widths of least predicted loss within all limits.

    Args:
        problem: The problem.
        seconds: Time limit; what is best by then is returned with the bound proven by then.

    Returns:
        The solution with a proven lower bound, or None if no choice is within the limits (or none was found in time).
        The levels of a wide network are searched from coarse to fine, and no bound is proven.
    """
    if not too_fine(problem):
        return _solve(problem, seconds)
    position = from_coarse(problem, _within_or_nearest, _overrun_then_rise, seconds=seconds)
    if position is None or not problem.fits(position[None])[0]:
        return None
    return Solution(position, "milp, coarse to fine", problem.rise(position), None)


def least_cost(problem: Problem, column: int, *, seconds: float = TIME_LIMIT) -> np.ndarray | None:
    """Position of the least cost in one column, with the limits on the others; None if infeasible."""

    def search(problem: Problem, seconds: float) -> np.ndarray | None:
        model = _Model(problem)
        limits = problem.limits.copy()
        limits[column] = np.inf
        model.limit(limits)
        scale = max(abs(float(problem.limits[column])), 1e-30)
        found = model.run(model.cost(column) / scale, seconds)
        return None if found is None else found[0]

    def cost(problem: Problem, position: np.ndarray) -> float:
        return float(problem.costs(position[None])[0, column])

    return from_coarse(problem, search, cost, seconds=seconds) if too_fine(problem) else search(problem, seconds)


def nearest(problem: Problem, *, seconds: float = TIME_LIMIT) -> np.ndarray | None:
    """Position at which the largest overrun, as a share of its limit, is smallest."""
    if too_fine(problem):
        return from_coarse(problem, _nearest, _overrun, seconds=seconds)
    return _nearest(problem, seconds)


def _solve(problem: Problem, seconds: float) -> Solution | None:
    for margin in _TIGHTER:  # the solver's own tolerance may go beyond a limit that is met exactly
        model = _Model(problem)
        model.limit(problem.limits * (1 - margin))
        found = model.run(model.rise(), seconds)
        if found is None:
            return None
        position, bound = found
        if problem.fits(position[None])[0]:
            return Solution(position, "milp", problem.rise(position), max(min(bound, problem.rise(position)), 0.0))
    return None


def _nearest(problem: Problem, seconds: float) -> np.ndarray | None:
    model = _Model(problem, extra=1)
    model.limit(np.zeros_like(problem.limits), overrun=problem.limits)
    objective = np.zeros(model.size)
    objective[-1] = 1.0
    found = model.run(objective, seconds)
    return None if found is None else found[0]


def _within_or_nearest(problem: Problem, seconds: float) -> np.ndarray | None:
    """Where no coarse level is within the limits, finer ones near those that come closest may be."""
    found = _solve(problem, seconds)
    return found.position if found is not None else _nearest(problem, seconds)


def _overrun(problem: Problem, position: np.ndarray) -> float:
    limited = np.isfinite(problem.limits)
    costs, limits = problem.costs(position[None])[0][limited], problem.limits[limited]
    return float(((costs - limits) / np.maximum(np.abs(limits), 1e-30)).max(initial=-np.inf))


def _overrun_then_rise(problem: Problem, position: np.ndarray) -> float:
    """Any choice within the limits is better than any other."""
    if problem.fits(position[None])[0]:
        return problem.rise(position)
    most = sum(float(np.max(part.rise, initial=0.0)) for part in problem.parts)
    return most + 1.0 + max(_overrun(problem, position), 0.0)


@dataclass
class _Rows:
    """Rows of a sparse matrix, with their bounds."""

    at: list[np.ndarray] = field(default_factory=list)
    value: list[np.ndarray] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, at: np.ndarray, value: np.ndarray, low: float, high: float) -> None:
        self.at.append(at)
        self.value.append(value)
        self.low.append(low)
        self.high.append(high)

    def matrix(self, columns: int) -> csr_array:
        starts = np.concatenate([[0], np.cumsum([len(row) for row in self.at])])
        return csr_array((np.concatenate(self.value), np.concatenate(self.at), starts), shape=(len(self.at), columns))


class _Model:
    """The programme: variables, marginals, limits."""

    def __init__(self, problem: Problem, extra: int = 0) -> None:
        self.problem, self.levels, self.rows = problem, problem.levels, _Rows()
        self.size, self.extra = 0, extra
        self.integer: list[np.ndarray] = []
        self.parts = [self._variables(len(part.rise), True) for part in problem.parts]
        for variables in self.parts:
            self._one_of(variables)
        self.axes = [self._axis(place) for place in range(len(self.levels.axes))]
        self.terms = [self._term(term.axes, term.values.shape[:-1]) for term in self.levels.terms]
        self._variables(extra, False)

    def limit(self, limits: np.ndarray, overrun: np.ndarray | None = None) -> None:
        """Keeps every cost within its limit, or within the share of it that the last variable says."""
        for column, limit in enumerate(limits):
            if overrun is None and not np.isfinite(limit):
                continue
            scale = max(abs(float(limit if overrun is None else overrun[column])), 1e-30)
            cost = self.cost(column) / scale
            if overrun is not None:
                cost[-1] = -1.0
            at = np.flatnonzero(cost)
            self.rows.add(at, cost[at], -np.inf, (limit - self.levels.constant[column]) / scale)

    def rise(self) -> np.ndarray:
        """The predicted rise of the loss as a function of the variables, in units of the largest."""
        objective = np.zeros(self.size)
        for variables, part in zip(self.parts, self.problem.parts, strict=True):
            objective[variables] = part.rise
        return objective

    def cost(self, column: int) -> np.ndarray:
        """A cost as a function of the variables, without its constant."""
        found = np.zeros(self.size)
        for variables, term in zip(self.terms, self.levels.terms, strict=True):
            np.add.at(found, variables, term.values[..., column].reshape(-1))
        return found

    def run(self, objective: np.ndarray, seconds: float) -> tuple[np.ndarray, float] | None:
        """The position of the best choice found and a lower bound on the objective."""
        scale = float(np.abs(objective).max(initial=0.0)) or 1.0
        integrality = np.zeros(self.size)
        integrality[np.concatenate(self.integer)] = 1
        # Typed loosely, as scipy's annotations know single numbers only.
        zeros: Any = np.zeros(self.size)
        ones: Any = np.where(np.arange(self.size) < self.size - self.extra, 1.0, np.inf)
        low, high = (np.array(side) for side in (self.rows.low, self.rows.high))
        rows: tuple[Any, ...] = (self.rows.matrix(self.size), low, high)
        with _no_output():
            result = milp(
                objective / scale,
                integrality=integrality,
                bounds=Bounds(zeros, ones),
                constraints=LinearConstraint(*rows),
                options={"time_limit": seconds, "mip_rel_gap": _GAP},
            )
        if result.x is None:
            return None
        position = np.array([int(result.x[variables].argmax()) for variables in self.parts], dtype=np.int64)
        bound = result.mip_dual_bound if result.mip_dual_bound is not None else 0.0
        return position, float(bound) * scale

    def _variables(self, count: int, integer: bool) -> np.ndarray:
        made = np.arange(self.size, self.size + count)
        self.size += count
        if integer:
            self.integer.append(made)
        return made

    def _one_of(self, variables: np.ndarray) -> None:
        self.rows.add(variables, np.ones(len(variables)), 1.0, 1.0)

    def _axis(self, place: int) -> np.ndarray:
        """A variable for each size of an axis: that of a part's level if one part lies on it alone."""
        axis, sizes = self.levels.axes[place], self.levels.sizes[place]
        shares = [share(axis, part) for part in self.problem.parts]
        on_it = [i for i, added in enumerate(shares) if np.ptp(added)]
        if len(on_it) == 1:
            (part,) = on_it
            at = axis[0] + sum(int(added[0]) for i, added in enumerate(shares) if i != part) + shares[part]
            if len(at) == len(sizes):
                return self.parts[part][np.argsort(at)]
            variables = self._variables(len(sizes), False)
            for variable, size in zip(variables, sizes, strict=True):
                levels = self.parts[part][at == size]
                self.rows.add(np.append(levels, variable), np.append(np.ones(len(levels)), -1.0), 0.0, 0.0)
            return variables
        variables = self._variables(len(sizes), True)
        self._one_of(variables)
        terms = [(variables, -sizes.astype(np.float64))]
        terms += [(self.parts[i], added.astype(np.float64)) for i, added in enumerate(shares) if added.any()]
        at, value = (np.concatenate(side) for side in zip(*terms, strict=True))
        self.rows.add(at, value, -float(axis[0]), -float(axis[0]))
        return variables

    def _term(self, axes: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """A variable for each combination of sizes of a term's axes, whose marginals are the axes' variables."""
        long = [i for i, levels in enumerate(shape) if levels > 1]
        if len(long) < 2:
            return self.axes[axes[long[0] if long else 0]]
        variables = self._variables(int(np.prod(shape)), False)
        grid = variables.reshape(shape)
        for i in long:
            for level, marginal in enumerate(self.axes[axes[i]]):
                at = np.append(grid.take(level, axis=i).reshape(-1), marginal)
                self.rows.add(at, np.append(np.ones(len(at) - 1), -1.0), 0.0, 0.0)
        return variables


@contextmanager
def _no_output() -> Iterator[None]:
    """Keeps what the solver's C++ prints (some versions leave traces of debugging) away from standard output."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    try:
        yield
    finally:
        with suppress(OSError, TypeError, AttributeError):  # what C still buffers goes the same way
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
