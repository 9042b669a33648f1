"""What can be chosen beside widths, and how the slopes of axes are laid out to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..cost.axes import Axis
from ..cost.terms import Column, Term


@dataclass(frozen=True)
class Quantities:
    """What a plan sets: kept units, implanted units and their rank by group, and 1 or 0 by block.

    Axes (see `cost.axes`) have one slope for each of them, in this order: widths of all groups, implanted units of all
    groups, ranks of all groups, blocks.

    Attributes:
        groups: Number of groups.
        blocks: Number of blocks that may be dropped.
    """

    groups: int
    blocks: int = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return 3 * self.groups + self.blocks

    def implanted(self, group: int) -> int:
        """Place of the implanted units of a group."""
        return self.groups + group

    def rank(self, group: int) -> int:
        """Place of the rank of a group's implant."""
        return 2 * self.groups + group

    def block(self, block: int) -> int:
        """Place of a block."""
        return 3 * self.groups + block

    def axis(self, slopes: Mapping[int, int], fixed: int = 0) -> Axis:
        """An axis from the slopes at some places."""
        return fixed, tuple(slopes.get(place, 0) for place in range(self.count))

    def widen(self, axis: Axis) -> Axis:
        """An axis that knows widths alone, with slopes for all."""
        return axis[0], axis[1] + (0,) * (self.count - len(axis[1]))

    def widened_term(self, term: Term) -> Term:
        """A term of axes that know widths alone, with slopes for all."""
        return replace(term, axes=tuple(self.widen(axis) for axis in term.axes))

    def widened(self, column: Column) -> Column:
        """A cost of axes that know widths alone, with slopes for all."""
        return replace(column, terms=tuple(self.widened_term(term) for term in column.terms))
