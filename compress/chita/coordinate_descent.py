"""Cyclic coordinate descent on a fixed support (CHITA-CD), by blocks of columns."""

from __future__ import annotations

import torch
from torch import Tensor

from .data_matrix import stored
from .line_search import Point
from .problem import Problem

_BLOCK = 256


def coordinate_descent(problem: Problem, at: Point, *, sweeps: int = 10, tolerance: float = 1e-6) -> Point:
    """Minimises Q over one weight of the support after another, in order, again and again.

    The weights of a block see each other through its Gram matrix: one sweep over a block solves a triangular system,
    which gives the very iterates of one weight after another, with matrix products for inner loops.

    Args:
        problem: Q; its matrix must be stored.
        at: Where to begin.
        sweeps: At most so many passes over the support.
        tolerance: Stops when a pass lowers Q by less than this share.
    """
    matrix = stored(problem.matrix, "coordinate descent")
    w, residual, best = at.w.clone(), at.residual.clone(), at
    blocks = at.support.nonzero()[:, 0].split(_BLOCK)
    # Gram matrices of blocks are small: together they take _BLOCK / n of what the columns take.
    lower = [_lower(matrix.columns(index), problem.pull) for index in blocks]
    for _ in range(sweeps):
        for index, triangle in zip(blocks, lower, strict=True):
            columns = matrix.columns(index)
            gradient = columns.T @ residual + problem.pull * (w[index] - problem.center[index])
            # Gauss-Seidel: the change of each weight answers to those before it in the same sweep.
            change = torch.linalg.solve_triangular(triangle, -gradient[:, None], upper=False)[:, 0]
            w[index] += change
            residual = residual + columns @ change
        value = problem.value(w, residual)
        if value >= best.value:
            break
        done = best.value - value <= tolerance * abs(best.value)
        best = Point(w.clone(), at.support, residual, value)
        if done:
            break
    return best


def _lower(columns: Tensor, pull: float) -> Tensor:
    """Lower triangle of AᵀA + nλ I."""
    gram = columns.T @ columns
    gram.diagonal().add_(pull)
    return gram.tril()
