"""Costs as sums of terms, each of which depends on the sizes of a few axes: the form that all searches read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .axes import Axis, sizes, varies


@dataclass(frozen=True)
class Term:
    """A part of a cost.

    Attributes:
        axes: The axis sizes that it depends on; each of them varies.
        value: From int64 [choices, axes] sizes to float64 [choices].
    """

    axes: tuple[Axis, ...]
    value: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Column:
    """One cost of a network: a constant plus a sum of terms.

    Attributes:
        name: What it is called in budgets and errors.
        terms: The terms.
        constant: What no width changes.
    """

    name: str
    terms: tuple[Term, ...]
    constant: float = 0.0

    def cost(self, widths: np.ndarray) -> np.ndarray:
        """Costs float64 [choices] at widths int64 [choices, groups]."""
        total = np.full(len(widths), float(self.constant))
        for term in self.terms:
            at = [sizes(axis, widths) for axis in term.axes]
            total += term.value(np.stack(at, axis=1) if at else np.zeros((len(widths), 0), dtype=np.int64))
        return total


def product_term(axes: Sequence[Axis], factor: float) -> Term:
    """A constant times the product of axis sizes."""
    constant, varying = factor, []
    for axis in axes:
        if varies(axis):
            varying.append(axis)
        else:
            constant *= axis[0]
    return Term(tuple(varying), _Product(constant))


@dataclass(frozen=True)
class _Product:
    factor: float

    def __call__(self, at: np.ndarray) -> np.ndarray:
        return self.factor * at.prod(axis=1)
