"""The best weights on a fixed support, exactly, by a system of n x n (Woodbury): never p x p."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .data_matrix import StoredMatrix
from .line_search import Point
from .problem import Problem

_CG_STEPS = 500


def backsolve(problem: Problem, support: Tensor) -> Point:
    """Minimises Q over the weights of the support; all others are 0.

    With t the residual when the support keeps its trained weights, the change is -A_Sᵀ (A_S A_Sᵀ + nλ I)⁻¹ t: what
    optimal brain surgery gives for all removed weights together (CBS, Yu et al. 2022). O(n² |S| + n³).

    Args:
        problem: Q.
        support: bool [p].
    """
    start = torch.where(support, problem.center, 0.0)
    residual = problem.residual(start)
    if not isinstance(problem.matrix, StoredMatrix):
        return _moved(problem, support, start, residual, _conjugate_gradients(problem, support, residual))
    index = support.nonzero()[:, 0]
    if len(index) >= problem.matrix.rows:
        normal = problem.matrix.gram(index)
        normal.diagonal().add_(problem.pull)
        solution = torch.linalg.solve(normal, residual.double())
        return _moved(problem, support, start, residual, solution)
    columns = problem.matrix.columns(index).double()
    normal = columns.T @ columns
    normal.diagonal().add_(problem.pull)
    change = torch.zeros_like(start)
    change[index] = torch.linalg.solve(normal, columns.T @ residual.double()).to(start.dtype)
    return _better(problem, support, start, residual, start - change)


class Path:
    """The solutions of `backsolve` for all ridges λ and weights α of the gradient, from one decomposition.

    They are start - A_Sᵀ (A_S A_Sᵀ + nλ I)⁻¹ (r + α 1), with r the residual of the kept trained weights.

    Args:
        problem: Its own ridge does not matter, nor its offset if that is a number.
        support: bool [p].
    """

    def __init__(self, problem: Problem, support: Tensor) -> None:
        vector = isinstance(problem.offset, Tensor)
        self._problem, self._support = problem if vector else replace(problem, offset=0.0), support
        self._start = torch.where(support, problem.center, 0.0)
        self._residual = self._problem.residual(self._start)
        matrix = problem.matrix
        self._eigen = Eigen.of(matrix, support.nonzero()[:, 0]) if isinstance(matrix, StoredMatrix) else None

    def weights(self, ridge: float, first_order: float) -> Tensor:
        """The weights [p] for λ and α."""
        problem, right = replace(self._problem, ridge=ridge), self._residual + first_order
        if self._eigen is not None:
            solution = self._eigen.solve(right, problem.pull)
        else:
            solution = _conjugate_gradients(problem, self._support, right)
        return self._start - torch.where(self._support, problem.matrix.adjoint(solution.to(right.dtype)), 0.0)


def _moved(problem: Problem, support: Tensor, start: Tensor, residual: Tensor, solution: Tensor) -> Point:
    """The weights that a solution in n-space stands for."""
    change = torch.where(support, problem.matrix.adjoint(solution.to(residual.dtype)), 0.0)
    return _better(problem, support, start, residual, start - change)


def _better(problem: Problem, support: Tensor, start: Tensor, residual: Tensor, w: Tensor) -> Point:
    """The new weights, or the start if rounding made them worse."""
    before = Point(start, support, residual, problem.value(start, residual))
    after = Point.at(problem, w, support)
    return after if after.value <= before.value else before


class Eigen:
    """Eigenvalues and -vectors of A_S A_Sᵀ: one decomposition serves every ridge."""

    def __init__(self, values: Tensor, vectors: Tensor) -> None:
        """Args: values: [n]; vectors: [n, n]; both float64."""
        # Rounding makes eigenvalues of a singular matrix slightly negative.
        self.values, self.vectors = values.clamp_min(0.0), vectors

    @classmethod
    def of(cls, matrix: StoredMatrix, index: Tensor) -> Eigen:
        """Of the columns of `index`."""
        return cls(*torch.linalg.eigh(matrix.gram(index)))

    def solve(self, right: Tensor, pull: float) -> Tensor:
        """(A_S A_Sᵀ + pull I)⁻¹ right, float64 [n]."""
        return self.vectors @ ((self.vectors.T @ right.double()) / (self.values + pull))


def _conjugate_gradients(problem: Problem, support: Tensor, right: Tensor) -> Tensor:
    """(A_S A_Sᵀ + nλ I)⁻¹ right by products alone; float64 [n]."""

    def apply(u: Tensor) -> Tensor:
        back = torch.where(support, problem.matrix.adjoint(u.to(right.dtype)), 0.0)
        return problem.matrix.forward(back).double() + problem.pull * u

    x = torch.zeros_like(right, dtype=torch.float64)
    r = right.double().clone()
    d, rho = r.clone(), float(r @ r)
    target = 1e-10 * rho
    for _ in range(min(_CG_STEPS, 2 * len(right))):
        if rho <= target:
            break
        image = apply(d)
        alpha = rho / float(d @ image)
        x, r = x + alpha * d, r - alpha * image
        new = float(r @ r)
        d, rho = r + (new / rho) * d, new
    return x
