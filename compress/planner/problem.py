"""The planning problem: what may be chosen for every group and block, the loss predicted for each, and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import ceil, gcd

import numpy as np

from ...errors import UserError, did_you_mean
from ...passes.labels.groups import Group
from ..cost.terms import Column
from ..sensitivity.table import Scores, Sensitivity
from .levels import Levels
from .order import own_interactions, removal_order

ROUNDING = 1e-9
"""Relative error that sums of costs may have."""


@dataclass(frozen=True)
class Choice:
    """The levels that one group may have: widths, or widths with implants among what is kept.

    Attributes:
        group: The group.
        column: Its place in the cost model.
        order: int64 [width]: units, least sensitive first.
        widths: int64 [levels]: kept units, descending, each once if there are no implants; the first level keeps all.
        rise: float64 [levels]: predicted rise of the loss; never falls where there are no implants. A negative score is
            noise larger than the score, no promise that a cut does good: it counts as nothing.
        scores: Scores by unit; None where the group is kept whole.
        reason: Why it is kept whole, or "".
        steps: float64 [width]: what each unit adds to the rise, in the order of removal.
        implanted: int64 [levels]: how many of the kept units have an implant, the first that would go next.
        ranks: int64 [levels]: rank of the implant; 0 for none, or one without a rank.
        further: Places of `implanted` and `ranks` in the slopes of axes; empty without implants.
    """

    group: Group
    column: int
    order: np.ndarray
    widths: np.ndarray
    rise: np.ndarray
    scores: Scores | None = None
    reason: str = ""
    steps: np.ndarray | None = None
    implanted: np.ndarray | None = None
    ranks: np.ndarray | None = None
    further: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """See `Part`."""
        return (self.column, *self.further)

    @property
    def amounts(self) -> np.ndarray:
        """See `Part`."""
        return self._amounts

    @cached_property
    def _amounts(self) -> np.ndarray:
        beside = [amount for amount in (self.implanted, self.ranks) if amount is not None]
        return np.stack([self.widths, *beside[: len(self.further)]], axis=1)


@dataclass(frozen=True)
class Drop:
    """Whether a residual block stays: it does at position 0, at position 1 it is gone.

    Attributes:
        name: Name of the block.
        place: Its place in the slopes of axes; the quantity is 1 while it stays.
        rise: float64 [2]: measured rise of the loss.
    """

    name: str
    place: int
    rise: np.ndarray

    @property
    def places(self) -> tuple[int, ...]:
        """See `Part`."""
        return (self.place,)

    @property
    def amounts(self) -> np.ndarray:
        """See `Part`."""
        return np.array([[1], [0]], dtype=np.int64)


@dataclass(frozen=True)
class Problem:
    """One level of each part is to be chosen: costs within the limits, at the least predicted rise of the loss.

    Attributes:
        choices: One a group, in the program's order.
        columns: The costs as functions of the quantities that are chosen.
        limits: float64 [costs]: their limits.
        drops: Blocks that may go. Positions are those of the groups, then those of the blocks.
    """

    choices: tuple[Choice, ...]
    columns: tuple[Column, ...]
    limits: np.ndarray
    drops: tuple[Drop, ...] = ()

    @cached_property
    def parts(self) -> tuple[Choice | Drop, ...]:
        """All that is chosen."""
        return (*self.choices, *self.drops)

    @cached_property
    def levels(self) -> Levels:
        """The costs, tabulated over the allowed levels."""
        return Levels.of(self.columns, self.parts)

    def widths(self, position: np.ndarray) -> np.ndarray:
        """Widths [..., groups] at positions [..., parts]."""
        return self._table[np.arange(len(self.choices)), position[..., : len(self.choices)]]

    def amounts(self, position: np.ndarray) -> np.ndarray:
        """All quantities int64 [..., quantities] at positions [..., parts]."""
        widths = self.widths(position)
        if not self._further:
            return widths
        size = 1 + max(place for part in self.parts for place in part.places)
        found = np.zeros((*position.shape[:-1], max(size, self._extent)), dtype=np.int64)
        found[..., : widths.shape[-1]] = widths
        for i in self._further:
            part = self.parts[i]
            found[..., list(part.places)] = part.amounts[position[..., i]]
        return found

    @cached_property
    def _further(self) -> list[int]:
        """Parts that set more than a width."""
        return [i for i, part in enumerate(self.parts) if isinstance(part, Drop) or part.further]

    @cached_property
    def _extent(self) -> int:
        """Quantities that the slopes of axes know."""
        return next((len(axis[1]) for column in self.columns for term in column.terms for axis in term.axes), 0)

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.zeros((len(self.choices), max((len(c.widths) for c in self.choices), default=0)), dtype=np.int64)
        for i, choice in enumerate(self.choices):
            table[i, : len(choice.widths)] = choice.widths
        return table

    def costs(self, positions: np.ndarray) -> np.ndarray:
        """Costs float64 [choices, costs] of many positions [choices, parts]."""
        return self.levels.costs(self.amounts(positions))

    def rise(self, position: np.ndarray) -> float:
        """Predicted rise of the loss at a position [parts]."""
        return float(sum(part.rise[p] for part, p in zip(self.parts, position, strict=True)))

    @property
    def first(self) -> np.ndarray:
        """int64 [parts]: the position that keeps everything."""
        return np.zeros(len(self.parts), dtype=np.int64)

    @property
    def last(self) -> np.ndarray:
        """int64 [parts]: position of the last level, which keeps least."""
        return np.array([len(part.rise) - 1 for part in self.parts], dtype=np.int64)

    def fits(self, positions: np.ndarray) -> np.ndarray:
        """Whether positions [choices, parts] are within the limits, up to rounding."""
        return np.all(self.costs(positions) <= self.limits * (1 + ROUNDING), axis=1)


def make_choices(
    groups: Sequence[Group], sensitivity: Sensitivity, *, align: int, floor: float, ignore: Sequence[str]
) -> tuple[Choice, ...]:
    """The allowed widths of every group.

    Args:
        groups: Groups of the program.
        sensitivity: Scores of their units.
        align: Every axis of channels should be a multiple of this.
        floor: Share of every group that stays.
        ignore: Patterns of the names of groups that are kept whole.

    Raises:
        UserError: A pattern matches nothing, or the scores belong to another program.
    """
    names = [group.name for group in groups]
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"the pattern {pattern!r} matches no group{did_you_mean(pattern, names)}",
                where="plan.ignore",
                hint=f"the groups are: {', '.join(names[:12])}{' …' if len(names) > 12 else ''}",
            )
    unknown = [name for name in sensitivity.groups if name not in names]
    if unknown:
        raise UserError(
            f"the sensitivities name a group that the program lacks: {unknown[0]}",
            why="they were measured on another program",
            hint="rank this program",
        )
    choices, blocks = [], own_interactions(sensitivity)
    for column, group in enumerate(groups):
        scores = sensitivity.groups.get(group.name)
        if scores is not None and len(scores.delta_loss) != group.width:
            raise UserError(
                f"the sensitivities of {group.name} are for {len(scores.delta_loss)} units, it has {group.width}",
                why="they were measured on another program",
                hint="rank this program",
            )
        choices.append(_choice(group, column, scores, blocks.get(group.name), align, floor, ignore))
    return tuple(choices)


def _choice(
    group: Group,
    column: int,
    scores: Scores | None,
    block: np.ndarray | None,
    align: int,
    floor: float,
    ignore: Sequence[str],
) -> Choice:
    pattern = next((p for p in ignore if fnmatchcase(group.name, p)), None)
    step = grid_step(group, align)
    least = max(step, step * ceil(floor * group.width / step - 1e-9))
    reason = ""
    if group.frozen is not None:
        reason = f"frozen: {group.frozen}"
    elif pattern is not None:
        reason = f"ignored: {pattern}"
    elif scores is None:
        reason = "no score"
    elif least >= group.width:
        reason = f"one step of the grid ({step}) or the floor is its whole width"
    if reason or scores is None:
        whole = np.array([group.width], dtype=np.int64)
        return Choice(group, column, np.arange(group.width), whole, np.zeros(1), None, reason)
    order, sums = removal_order(scores.delta_loss, block)
    widths = np.array([group.width, *range((group.width - 1) // step * step, least - 1, -step)], dtype=np.int64)
    return Choice(group, column, order, widths, sums[group.width - widths], scores, steps=np.diff(sums))


def grid_step(group: Group, align: int) -> int:
    """Units by which a group may shrink so that the axes it is computed on stay multiples of `align`.

    Where a unit takes several positions of each such axis (a grouped convolution), fewer units make a step.
    """
    multiplicity = gcd(*(member.index.shape[1] for member in group.producers)) or 1
    return align // gcd(align, multiplicity)


def widths_by_name(problem: Problem, position: np.ndarray) -> Mapping[str, int]:
    """Widths of the groups at a position."""
    return {c.group.name: int(c.widths[p]) for c, p in zip(problem.choices, position, strict=False)}
