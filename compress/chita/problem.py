"""The objective: least squares in the gradients, with a ridge (CHITA, Benbaki et al. 2023, arXiv:2302.14623, eq. 5)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...errors import UserError
from .data_matrix import DataMatrix, StoredMatrix


@dataclass(frozen=True)
class Problem:
    """Minimise Q(w) = 1/2 ‖A (w - w̄) + c‖² + nλ/2 ‖w - w̄‖² over sparse w.

    With c = α 1 this is n times the loss's quadratic model at the trained weights w̄, up to a constant: AᵀA/n, the
    empirical Fisher, stands for the Hessian, α weighs the gradient, λ is a ridge. With b = A w̄ - c it reads
    1/2 ‖b - A w‖² + …, a regression.

    Attributes:
        matrix: A, [n, p].
        center: w̄, [p].
        ridge: λ.
        offset: c, [n], or the number α. α = 0 leaves the gradient out; gradients of mini-batches of m samples make the
            Fisher m times too small, so that α = 1/m treats both alike.
    """

    matrix: DataMatrix
    center: Tensor
    ridge: float
    offset: Tensor | float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.ridge < math.inf:
            raise UserError(
                f"the ridge must be above 0, not {self.ridge}",
                where="sparsify.ridge",
                why="there are fewer gradients than weights: without a ridge the system is singular",
                hint="1e-5 to 1e-1, or 'auto'",
            )

    @property
    def pull(self) -> float:
        """nλ."""
        return self.matrix.rows * self.ridge

    def residual(self, w: Tensor) -> Tensor:
        """A (w - w̄) + c, [n]."""
        return self.matrix.forward(w - self.center) + self.offset

    def value(self, w: Tensor, residual: Tensor | None = None) -> float:
        """Q(w).

        Args:
            w: [p].
            residual: That of w, if it is known.
        """
        r = self.residual(w) if residual is None else residual
        away = (w - self.center).double()
        return 0.5 * float(r.double().square().sum() + self.pull * away.square().sum())

    def gradient(self, w: Tensor, residual: Tensor) -> Tensor:
        """∇Q = Aᵀ r + nλ (w - w̄), [p]."""
        return self.matrix.adjoint(residual) + self.pull * (w - self.center)

    def restrict(self, index: Tensor) -> Problem:
        """The problem in the weights of `index` while all others are 0; equal up to a constant.

        Only a stored matrix can be restricted.
        """
        assert isinstance(self.matrix, StoredMatrix)
        outside = self.center.clone()
        outside[index] = 0
        offset = self.offset - self.matrix.forward(outside)
        return Problem(self.matrix.restrict(index), self.center[index], self.ridge, offset)
