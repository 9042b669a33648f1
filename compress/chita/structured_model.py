"""The quadratic model of removing units: least squares in which the columns of removed units are forced to zero.

A part is a regression: weights W [rows, columns] act on inputs with moment matrix H [columns, columns]. If the columns
of the units S are removed and the others (R) are free to make up for them, what remains is

    f(S) = min over B with B_S = 0 of tr((W - B) H (W - B)ᵀ) = tr(W_S (H_SS - H_SR H_RR⁻¹ H_RS) W_Sᵀ)

(optimal brain surgeon of groups: Hassibi and Stork 1993; Kurtic et al. 2023, ZipLM; Meng et al. 2024, OSSCAR). With one
row of ones, one column a unit and H the Gauss-Newton matrix of the gates it is CHITA's regression in the gates, whose
survivors are free; with a layer's weights and inputs it is the reconstruction of that layer. A unit may lie in several
parts; f is their sum.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Part:
    """One regression.

    Attributes:
        weights: float64 [rows, columns].
        moments: float64 [columns, columns], positive definite: with a ridge on its diagonal.
        units: int64 [columns]: the unit of each column; -1 for a column that cannot be removed.
    """

    weights: np.ndarray
    moments: np.ndarray
    units: np.ndarray


class Tableau:
    """The f of one part while units leave and come back, by sweeps of its normal equations (Beaton 1964).

    With R the columns that are in, `matrix` holds -H_RR⁻¹, H_RR⁻¹ H_RS and the Schur complement of S, `values` the
    solution B_Rᵀ and the residual of S. Every unit's cost of leaving, or gain of coming back, is then at hand.
    """

    def __init__(self, part: Part) -> None:
        """Starts with all columns in: at f = 0."""
        inverse = np.linalg.inv(part.moments)
        self.matrix, self.values = -(inverse + inverse.T) / 2, part.weights.T.copy()
        self.present = np.unique(part.units[part.units >= 0])
        """Units that lie in this part, ascending."""
        columns = {int(unit): np.flatnonzero(part.units == unit) for unit in self.present}
        self._columns = columns
        sizes = np.array([len(columns[int(unit)]) for unit in self.present], dtype=np.int64)
        self._by_size = [
            (np.flatnonzero(sizes == size), np.stack([columns[int(u)] for u in self.present[sizes == size]]))
            for size in np.unique(sizes)
        ]
        self._forms: np.ndarray | None = None
        """What `forms` has found; a unit that leaves or comes back changes it in the few parts where it lies."""

    def forms(self) -> np.ndarray:
        """The rise of f if a unit leaves, or its fall if it comes back: float64 [units present], never negative."""
        if self._forms is None:
            self._forms = self._find_forms()
        return self._forms

    def _find_forms(self) -> np.ndarray:
        found = np.zeros(len(self.present))
        for places, columns in self._by_size:
            blocks = self.matrix[columns[:, :, None], columns[:, None, :]]
            values = self.values[columns]
            found[places] = np.abs(np.einsum("ukr,ukr->u", values, np.linalg.solve(blocks, values)))
        return found

    def toggle(self, unit: int) -> None:
        """Lets a unit leave, or come back; nothing happens if it is in no column."""
        k = self._columns.get(unit)
        if k is None:
            return
        self._forms = None
        block = self.matrix[np.ix_(k, k)]
        inside = block[0, 0] < 0.0
        pivot = np.linalg.inv(block)
        rows, right = self.matrix[k], self.values[k]
        step = pivot @ rows
        self.values -= rows.T @ (pivot @ right)
        self.matrix -= rows.T @ step
        sign = -1.0 if inside else 1.0
        self.matrix[k], self.matrix[:, k] = sign * step, sign * step.T
        self.matrix[np.ix_(k, k)] = -(pivot + pivot.T) / 2
        self.values[k] = sign * (pivot @ right)


class Selection:
    """Which units are removed, and what that costs in the model."""

    def __init__(self, parts: Sequence[Part], units: int) -> None:
        """Starts with nothing removed.

        Args:
            parts: The regressions.
            units: Number of units.
        """
        self.parts = parts
        self.tableaux = [Tableau(part) for part in parts]
        self.removed = np.zeros(units, dtype=bool)
        self.rise = 0.0
        """f of what is removed."""

    def forms(self) -> np.ndarray:
        """float64 [units]: the rise of f if a unit leaves, its fall if it comes back."""
        found = np.zeros(len(self.removed))
        for tableau in self.tableaux:
            found[tableau.present] += tableau.forms()
        return found

    def toggle(self, unit: int, form: float | None = None) -> None:
        """Removes a unit, or brings it back.

        Args:
            unit: Its number.
            form: Its entry of `forms`, if that is known.
        """
        form = float(self.forms()[unit]) if form is None else form
        for tableau in self.tableaux:
            tableau.toggle(unit)
        self.rise += -form if self.removed[unit] else form
        self.removed[unit] = not self.removed[unit]

    def copy(self) -> Selection:
        """An independent copy."""
        twin = copy.copy(self)
        twin.removed = self.removed.copy()
        twin.tableaux = []
        for tableau in self.tableaux:
            other = copy.copy(tableau)
            other.matrix, other.values = tableau.matrix.copy(), tableau.values.copy()
            twin.tableaux.append(other)
        return twin


def solve(part: Part, removed: np.ndarray) -> tuple[float, np.ndarray]:
    """The f of one part, and the weights B that attain it, directly from the normal equations.

    Args:
        part: The regression.
        removed: bool [units].
    """
    gone = (part.units >= 0) & removed[np.maximum(part.units, 0)]
    kept = ~gone
    cross = part.weights @ part.moments
    solution = np.zeros_like(part.weights)
    if kept.any():
        solution[:, kept] = np.linalg.solve(part.moments[np.ix_(kept, kept)], cross[:, kept].T).T
    difference = part.weights - solution
    return float(np.einsum("rc,cd,rd->", difference, part.moments, difference)), solution
