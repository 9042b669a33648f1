"""Costs at the widths that may be chosen: every term of every cost, tabulated over the levels of its axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..cost.axes import Axis
from ..cost.terms import Column


class Part(Protocol):
    """Something of which one level is chosen: the units of a group, or whether a block stays."""

    @property
    def places(self) -> tuple[int, ...]:
        """The quantities that it sets: their places in the slopes of axes."""
        ...

    @property
    def amounts(self) -> np.ndarray:
        """int64 [levels, places]: what each level sets them to."""
        ...


@dataclass(frozen=True)
class LevelTerm:
    """A term of the costs.

    Attributes:
        axes: Places of its axes in `Levels.axes`.
        values: float64 [levels of the first axis, …, costs].
    """

    axes: tuple[int, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Levels:
    """Costs over all allowed levels.

    Attributes:
        names: Of the costs.
        axes: Distinct axes that costs depend on.
        sizes: int64 [levels] each: the sizes that an axis can have, ascending.
        terms: Terms, those that depend on the same axes merged.
        constant: float64 [costs].
    """

    names: tuple[str, ...]
    axes: tuple[Axis, ...]
    sizes: tuple[np.ndarray, ...]
    terms: tuple[LevelTerm, ...]
    constant: np.ndarray

    @staticmethod
    def of(columns: Sequence[Column], parts: Sequence[Part]) -> Levels:
        """Tabulates costs.

        Args:
            columns: The costs.
            parts: What is chosen.
        """
        axes: dict[Axis, int] = {}
        sizes: list[np.ndarray] = []
        merged: dict[tuple[int, ...], np.ndarray] = {}
        constant = np.array([column.constant for column in columns], dtype=np.float64)
        for number, column in enumerate(columns):
            for term in column.terms:
                for axis in term.axes:
                    if axis not in axes:
                        axes[axis] = len(axes)
                        sizes.append(sizes_of(axis, parts))
                places = tuple(axes[axis] for axis in term.axes)
                distinct = tuple(sorted(set(places)))
                values = merged.setdefault(
                    distinct, np.zeros((*(len(sizes[place]) for place in distinct), len(columns)))
                )
                sides = np.meshgrid(*(sizes[place] for place in distinct), indexing="ij")
                grid = [side.reshape(-1) for side in sides]
                at = [grid[distinct.index(place)] for place in places]
                at = np.stack(at, axis=1) if at else np.zeros((1, 0), dtype=np.int64)
                values[..., number] += term.value(at).reshape(values.shape[:-1])
        constant = constant + sum((v for places, v in merged.items() if not places), np.zeros(len(columns)))
        terms = tuple(LevelTerm(places, values) for places, values in merged.items() if places)
        return Levels(tuple(column.name for column in columns), tuple(axes), tuple(sizes), terms, constant)

    def costs(self, amounts: np.ndarray) -> np.ndarray:
        """Costs float64 [choices, costs] at quantities int64 [choices, quantities] that the levels can give."""
        slope = np.array([slope for _, slope in self.axes], dtype=np.int64).reshape(len(self.axes), amounts.shape[1])
        at = amounts @ slope.T + np.array([fixed for fixed, _ in self.axes], dtype=np.int64)
        level = [np.searchsorted(sizes, at[:, i]) for i, sizes in enumerate(self.sizes)]
        total = np.repeat(self.constant[None], len(amounts), axis=0)
        for term in self.terms:
            total += term.values[tuple(level[axis] for axis in term.axes)]
        return total


def share(axis: Axis, part: Part) -> np.ndarray:
    """What each level of a part adds to the size of an axis, int64 [levels]."""
    slope = np.array([axis[1][place] for place in part.places], dtype=np.int64)
    return part.amounts @ slope


def sizes_of(axis: Axis, parts: Sequence[Part]) -> np.ndarray:
    """The sizes that an axis can have."""
    found = np.array([axis[0]], dtype=np.int64)
    for part in parts:
        if any(axis[1][place] for place in part.places):
            found = np.unique(found[:, None] + share(axis, part)[None])
    return found


def reachable(axis: Axis, widths: Sequence[np.ndarray]) -> np.ndarray:
    """The sizes that an axis can have at these widths of each group."""
    found = np.array([axis[0]], dtype=np.int64)
    for slope, allowed in zip(axis[1], widths, strict=True):
        if slope:
            found = np.unique(found[:, None] + slope * np.asarray(allowed, dtype=np.int64)[None])
    return found
