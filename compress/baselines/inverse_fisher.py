"""The inverse of an empirical Fisher, without forming it: what WoodFisher and M-FAC compute one gradient at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from ..chita.data_matrix import StoredMatrix

_NUMBERS = 2**22


class InverseFisher:
    """(λ I + AᵀA / n)⁻¹ for some columns of A.

    Sherman and Morrison's recursion over the rows, F_i⁻¹ = F_{i-1}⁻¹ - h_i h_iᵀ / d_i with h_i = F_{i-1}⁻¹ a_i and
    d_i = n + a_iᵀ h_i, is the Cholesky factorisation of M = n I + A Aᵀ / λ: if M = C Cᵀ, then d_i = C_ii² and the rows
    of V = C⁻¹ A / λ are h_i / √d_i. So F⁻¹ = I / λ - VᵀV, in matrix products.

    Args:
        matrix: A, or some of its columns, [n, B].
        ridge: λ, the dampening.
    """

    def __init__(self, matrix: StoredMatrix, ridge: float) -> None:
        self._matrix, self._ridge = matrix, ridge
        self._wide = matrix.size > matrix.rows
        if self._wide:
            middle = matrix.gram() / ridge
            middle.diagonal().add_(matrix.rows)
            self._factor = torch.linalg.cholesky(middle)
        else:
            columns = matrix.columns(slice(0, matrix.size)).double()
            fisher = columns.T @ columns / matrix.rows
            fisher.diagonal().add_(ridge)
            self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(fisher))

    def diagonal(self) -> Tensor:
        """float64 [B]."""
        if not self._wide:
            return self._inverse.diagonal().clone()
        parts = []
        width = max(1, _NUMBERS // self._matrix.rows)
        for low in range(0, self._matrix.size, width):
            columns = self._matrix.columns(slice(low, min(low + width, self._matrix.size))).double() / self._ridge
            parts.append(torch.linalg.solve_triangular(self._factor, columns, upper=False).square().sum(0))
        return 1.0 / self._ridge - torch.cat(parts)

    def apply(self, v: Tensor) -> Tensor:
        """F⁻¹ v, float64 [B]."""
        v = v.double()
        if not self._wide:
            return self._inverse @ v
        image = self._matrix.forward(v.to(torch.float32)).double()
        inner = torch.cholesky_solve(image[:, None], self._factor)[:, 0]
        return v / self._ridge - self._matrix.adjoint(inner.to(torch.float32)).double() / self._ridge**2
