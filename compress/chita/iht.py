"""Iterative hard thresholding over all weights, or over a growing active set of them (CHITA, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .constraints import Constraint
from .data_matrix import StoredMatrix
from .line_search import Point, step
from .problem import Problem

Watch = Callable[[Point], None]
"""Told every point on the way; for tests and progress."""


def start(problem: Problem, constraint: Constraint) -> Point:
    """The trained weights, projected: magnitude pruning."""
    support = constraint.project(problem.center)
    return Point.at(problem, torch.where(support, problem.center, 0.0), support)


def iterate(
    problem: Problem,
    at: Point,
    constraint: Constraint,
    *,
    steps: int = 50,
    tolerance: float = 1e-7,
    watch: Watch | None = None,
) -> Point:
    """Steps until Q falls by less than `tolerance` of itself, or so many times."""
    for _ in range(steps):
        found = step(problem, at, constraint)
        if watch:
            watch(found)
        done = at.value - found.value <= tolerance * abs(at.value)
        at = found
        if done:
            break
    return at


def active_set(
    problem: Problem,
    at: Point,
    constraint: Constraint,
    *,
    growth: float = 1.5,
    rounds: int = 10,
    steps: int = 50,
    watch: Watch | None = None,
) -> Point:
    """Iterates over few weights at a time: those of the support and the likeliest others.

    A round solves the problem of the active weights, then takes one step in all of them. Where that brings others in,
    they join the active ones, and a new round begins. Only this step touches all of A. Without a stored matrix, which
    alone can be restricted, it is plain `iterate`.

    Args:
        problem: Q.
        at: Where to begin.
        constraint: The allowed patterns.
        growth: Size of the first active set over that of the support.
        rounds: At most so many.
        steps: At most so many in a round.
        watch: Told every point, of all weights.
    """
    if not isinstance(problem.matrix, StoredMatrix):
        return iterate(problem, at, constraint, steps=steps, watch=watch)
    active = _first_active(problem, at, growth)
    for _ in range(rounds):
        at = _solve_within(problem, at, constraint, active.nonzero()[:, 0], steps, watch)
        found = step(problem, at, constraint)
        if watch:
            watch(found)
        entered = found.support & ~active
        at = found
        if not bool(entered.any()):
            break
        active |= entered
    return at


@dataclass(frozen=True)
class _Within:
    """A constraint on all weights, seen by some of them while the others are 0."""

    inner: Constraint
    index: Tensor
    size: int

    def project(self, values: Tensor) -> Tensor:
        return self.inner.project(self._widen(values))[self.index]

    def rivals(self, gradient: Tensor, support: Tensor) -> Tensor | None:
        # Weights that are not active stay 0, so they are no rivals.
        outside = torch.ones(self.size, dtype=torch.bool, device=support.device)
        outside[self.index] = support
        found = self.inner.rivals(self._widen(gradient), outside)
        return found if found is None or found.ndim == 0 else found[self.index]

    def _widen(self, values: Tensor) -> Tensor:
        wide = values.new_zeros(self.size)
        wide[self.index] = values
        return wide


def _first_active(problem: Problem, at: Point, growth: float) -> Tensor:
    """The support and those, bool [p], that a step of the size 1 / (nλ + ‖A‖²) makes largest."""
    gradient = problem.gradient(at.w, at.residual)
    image = problem.matrix.forward(gradient)
    norm = float(gradient.square().sum())
    lipschitz = problem.pull + (float(image.square().sum()) / norm if norm else 0.0)
    moved = (at.w - gradient / lipschitz).abs()
    active = at.support.clone()
    extra = min(int((growth - 1.0) * int(active.sum())), len(active) - int(active.sum()))
    if extra > 0:
        active[moved.masked_fill(active, -1.0).topk(extra, sorted=False).indices] = True
    return active


def _solve_within(
    problem: Problem, at: Point, constraint: Constraint, index: Tensor, steps: int, watch: Watch | None
) -> Point:
    small = problem.restrict(index)
    inner = _Within(constraint, index, problem.matrix.size)

    def widen(point: Point) -> Point:
        w = torch.zeros_like(at.w)
        w[index] = point.w
        support = torch.zeros_like(at.support)
        support[index] = point.support
        return Point.at(problem, w, support)

    found = iterate(
        small,
        Point.at(small, at.w[index], at.support[index]),
        inner,
        steps=steps,
        watch=(lambda point: watch(widen(point))) if watch else None,
    )
    wide = widen(found)
    return wide if wide.value <= at.value else at
