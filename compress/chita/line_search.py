"""One step of iterative hard thresholding, with its exact step size (CHITA, section 3.2).

Along the negative gradient, Q(P(w - τ∇)) is piecewise quadratic in τ: its pieces change where the support does. The
first breakpoint and the minimum of the first piece have closed forms; pieces behind them are searched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .constraints import Constraint
from .problem import Problem

_BEYOND = 1.0 + 1e-4
"""Just behind a breakpoint, where the support has changed."""


@dataclass(frozen=True)
class Point:
    """Where an iteration is.

    Attributes:
        w: [p], zero outside the support.
        support: bool [p].
        residual: [n].
        value: Q.
    """

    w: Tensor
    support: Tensor
    residual: Tensor
    value: float

    @classmethod
    def at(cls, problem: Problem, w: Tensor, support: Tensor) -> Point:
        """The point of weights that are zero outside their support."""
        residual = problem.residual(w)
        return cls(w, support, residual, problem.value(w, residual))


def first_breakpoint(w: Tensor, gradient: Tensor, support: Tensor, rivals: Tensor) -> float:
    """The τ at which a weight outside first becomes as large as one inside, or infinity.

    On the path w - τ∇ a weight i of the support has the size |w_i - τ∇_i|, one outside τ|∇_j| ≤ τM. With equal signs
    of w_i and ∇_i they meet at |w_i| / (M + |∇_i|), with opposite ones at |w_i| / (M - |∇_i|) if that is positive.

    Args:
        w: [p].
        gradient: [p].
        support: bool [p].
        rivals: M of each weight, broadcastable to [p].
    """
    speed = torch.where(torch.sign(w) == torch.sign(gradient), gradient.abs(), -gradient.abs()) + rivals
    meets = torch.where((speed > 0) & support & (rivals > 0), w.abs() / speed, math.inf)
    return float(meets.min())


def step(problem: Problem, at: Point, constraint: Constraint, *, trials: int = 5) -> Point:
    """The best of the minimum on the present support and of some steps that change it.

    Never rises: the former is an exact minimisation along a line.

    Args:
        problem: Q.
        at: The present point.
        constraint: The allowed patterns.
        trials: Step sizes that are tried behind the first breakpoint, each twice the one before, while Q falls.
    """
    gradient = problem.gradient(at.w, at.residual)
    along = torch.where(at.support, gradient, 0.0)
    image = problem.matrix.forward(along)
    squared = float(along.double().square().sum())
    curvature = float(image.double().square().sum()) + problem.pull * squared
    tau = squared / curvature if curvature > 0 else 0.0
    best = _keep_better(problem, at, at.w - tau * along, at.residual - tau * image)
    rivals = constraint.rivals(gradient, at.support)
    limit = 0.0 if rivals is None else first_breakpoint(at.w, gradient, at.support, rivals)
    if tau <= limit and rivals is not None:
        return best
    size = limit * _BEYOND if limit > 0 else tau
    last = math.inf
    for _ in range(trials):
        moved = at.w - size * gradient
        support = constraint.project(moved)
        found = Point.at(problem, torch.where(support, moved, 0.0), support)
        if found.value < best.value:
            best = found
        if found.value >= last:
            break
        last, size = found.value, 2 * size
    return best


def _keep_better(problem: Problem, at: Point, w: Tensor, residual: Tensor) -> Point:
    """The new point on the same support, or the old one if rounding made it worse."""
    value = problem.value(w, residual)
    return Point(w, at.support, residual, value) if value < at.value else at
