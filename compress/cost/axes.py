"""Sizes of axes and values as functions of the widths of the groups."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from torch import Tensor, fx

from ...passes.labels.flow import canonical_names, shape_of
from ...passes.labels.groups import Group
from ...passes.labels.units import shrinking_axis
from ...passes.labels.values import Labels
from ...passes.program import Program

Axis = tuple[int, tuple[int, ...]]
"""Size of an axis (or of anything that units add to): a constant, and for each group what a unit of it adds."""


class AxisReader:
    """Reads the sizes of a program's axes.

    Attributes:
        program: The program.
        groups: Its groups.
        fixed: The axis of size 1 that depends on nothing.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.groups: Sequence[Group] = program.groups
        self._names = canonical_names(program.graph_module)
        self._on_axis: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for i, group in enumerate(self.groups):
            for member in group.members:
                self._on_axis.setdefault((member.tensor, member.axis), []).append((i, member.index.shape[1]))
        self.fixed: Axis = (1, (0,) * len(self.groups))

    def tensor(self, tensor: Tensor) -> list[Axis]:
        """Axis sizes of a parameter."""
        name = self._names[id(tensor)]
        return [self.axis(size, self._on_axis.get((name, axis), ())) for axis, size in enumerate(tensor.shape)]

    def positions(self, node: fx.Node, sizes: Sequence[int]) -> list[Axis]:
        """Axis sizes of a node's value, of which those that are 1 in `sizes` do not count.

        Channels may lie on one that counts (a linear layer across tokens).
        """
        axes = [self.axis(size, ()) for size in sizes]
        units = self._units(node)
        axis = shrinking_axis(units) if units is not None and units.ndim else None
        if units is not None and axis is not None and sizes[axis] > 1:
            along = np.moveaxis(units, axis, 0).reshape(units.shape[axis], -1)[:, 0]
            axes[axis] = self.axis(sizes[axis], self._lying(along))
        return axes

    def elements(self, node: fx.Node) -> Axis:
        """Number of elements of a node's tensor, as a size that each unit adds to."""
        shape = shape_of(node)
        units = self._units(node)
        if units is None or not units.size:
            return self.axis(prod(shape), ())
        copies = prod(shape) // units.size
        return self.axis(prod(shape), [(i, n * copies) for i, n in self._lying(units.reshape(-1))])

    def axis(self, size: int, groups: Sequence[tuple[int, int]]) -> Axis:
        """An axis from its full size and the groups on it, each with the positions that one unit takes."""
        slope = [0] * len(self.groups)
        for i, multiplicity in groups:
            slope[i] += multiplicity
        return size - sum(m * g.width for m, g in zip(slope, self.groups, strict=True)), tuple(slope)

    def _units(self, node: fx.Node) -> np.ndarray | None:
        labels = self.program.analysis.values.get(node.name)
        return self.program.analysis.unit_of[labels.ids.numpy()] if isinstance(labels, Labels) else None

    def _lying(self, units: np.ndarray) -> list[tuple[int, int]]:
        """Groups among units, with the positions that each of their units takes."""
        group = np.searchsorted(self.program.analysis.first_unit, units[units >= 0], side="right") - 1
        present, counts = np.unique(group, return_counts=True)
        return [(i, n // self.groups[i].width) for i, n in zip(present.tolist(), counts.tolist(), strict=True)]


def scaled(axis: Axis, factor: int) -> Axis:
    """An axis that is `factor` times as long."""
    return axis[0] * factor, tuple(slope * factor for slope in axis[1])


def varies(axis: Axis) -> bool:
    """Whether the size depends on any width."""
    return any(axis[1])


def sizes(axis: Axis, widths: np.ndarray) -> np.ndarray:
    """Sizes [choices] at widths [choices, groups]."""
    return axis[0] + widths @ np.array(axis[1], dtype=np.int64)
