"""Analysis of a program: channel labels, units and groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Refused
from . import hints
from .flow import Flow
from .groups import Group, Member, Role
from .register import all_rules
from .rule import Rules
from .units import classes, first_appearance, settle_splits, shrinking_axis, to_edges
from .values import Labels

if TYPE_CHECKING:
    from ..program import Program


@dataclass(frozen=True)
class Analysis:
    """What is known about the channels of a program.

    Attributes:
        groups: Groups of units, ordered by their first producers; frozen ones too.
        values: Labels by node name (a tuple for several outputs, None for what is no tensor). Free parameters that are
            read as weights are left out.
        unit_of: int64 [number of label ids]: number of the unit of an id, counted through all groups in order
            (`first_unit` of the group + index in the group); -1 for positions that belong to no unit.
        first_unit: int64 [number of groups + 1]: number of the first unit of each group.
        axis_sizes: Size of every parameter or buffer axis that a layer or operation uses, by (tensor, axis).
        reads: (tensor, axis) of the weights that read channels: where `mask` silences units.
        readings: Where values are read by weights, in graph order: names of the node that reads and of the value, and
            the axis of the channels there, counted from the end.
        averaged: Normalisations that average over channels that may go, by the names of the node and of the value.
        rules: The rule table.
    """

    groups: tuple[Group, ...]
    values: Mapping[str, Any]
    unit_of: np.ndarray
    first_unit: np.ndarray
    axis_sizes: Mapping[tuple[str, int], int]
    reads: frozenset[tuple[str, int]]
    readings: tuple[tuple[str, str, int], ...]
    averaged: tuple[tuple[str, str], ...]
    rules: Rules

    def removed_ids(self, keep: Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether a label id is removed, bool [number of ids], if of the named groups only the given units stay."""
        gone = np.zeros(self.first_unit[-1] + 1, dtype=bool)  # the last entry is that of -1: never removed
        for start, group in zip(self.first_unit, self.groups, strict=False):
            if group.name in keep:
                gone[start : start + group.width] = True
                gone[start + keep[group.name]] = False
        return gone[self.unit_of]


def analyse(program: Program, rules: Rules | None = None) -> Analysis:
    """Finds the units and groups of a program from its shapes alone; weights are not looked at.

    Args:
        program: The program; shapes are propagated if it has none.
        rules: Rule table; the built-in one and what users registered if left out.

    Returns:
        Groups and the labels of every value. The same program gives the same groups in the same order.
    """
    if any(node.op != "output" and "val" not in node.meta for node in program.graph.nodes):
        from ..shapes import propagate

        propagate(program)
    rules = all_rules() if rules is None else rules
    flow = Flow(program.graph_module, rules, widths=RELEASED in program.history)
    flow.run()
    flow.join_shared()
    component = settle_splits(flow.count, to_edges(flow.edges), flow.splits)
    _freeze_irregular(flow, component)

    produced = [component[use.ids.numpy()] for use in flow.uses if use.role is Role.PRODUCE]
    order = first_appearance(np.concatenate([np.zeros(1, dtype=np.int64), *produced]))[1:]
    number = np.full(flow.count, -1, dtype=np.int64)
    number[order] = np.arange(len(order))
    unit_of = number[component]

    reason = np.full(len(order), -1, dtype=np.int64)
    for index, freeze in reversed(list(enumerate(flow.freezes))):
        units = unit_of[freeze.ids.numpy()]
        reason[units[units >= 0]] = index
    kind = classes(len(order), _axes(flow, unit_of, reason))
    # Number the units group by group.
    by_group = np.argsort(kind, kind="stable")
    renumber = np.full(len(order) + 1, -1, dtype=np.int64)
    renumber[by_group] = np.arange(len(order))
    unit_of = renumber[unit_of]
    widths = np.bincount(kind) if len(order) else np.zeros(0, dtype=np.int64)
    first_unit = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)

    refusals = [flow.freezes[i].refused if i >= 0 else None for i in reason[by_group[first_unit[:-1]]]]
    refusals = [r or (_ALONE if width == 1 else None) for r, width in zip(refusals, widths, strict=True)]
    return Analysis(
        groups=_groups(flow, unit_of, first_unit, refusals),
        # A weight of a contraction is described by its axes, not by labels of its elements.
        values={node.name: value for node, value in flow.values.items() if not flow.is_weight(node)},
        unit_of=unit_of,
        first_unit=first_unit,
        axis_sizes={
            **{(use.tensor, use.axis): len(use.ids) for use in flow.uses},
            **{(name, axis): n for name, labels in flow.elements.items() for axis, n in enumerate(labels.shape)},
        },
        reads=frozenset((use.tensor, use.axis) for use in flow.uses if use.role is Role.CONSUME),
        readings=tuple((node.name, source.name, axis) for node, source, axis in flow.reads),
        averaged=tuple((node.name, source.name) for node, source in flow.averaged),
        rules=rules,
    )


RELEASED = "release_widths"
"""The pass after which channels may go that a normalisation averages over."""

_ALONE = Refused("it is a single unit, and an axis of width 0 computes nothing", hint=hints.ALONE)


def _each_labels(flow: Flow) -> Iterator[tuple[Any, Labels]]:
    """Every distinct labelled value with a node that has it."""
    seen: dict[int, Labels] = {}
    for node, value in flow.values.items():
        for labels in value if isinstance(value, tuple) else (value,):
            if isinstance(labels, Labels) and labels.labelled and id(labels.ids) not in seen:
                seen[id(labels.ids)] = labels
                yield node, labels


def _freeze_irregular(flow: Flow, component: np.ndarray) -> None:
    """Freezes channels that are not whole slices of one axis of every value."""
    for node, labels in _each_labels(flow):
        if len(labels.axes) > 1 and shrinking_axis(component[labels.ids.numpy()]) is None:
            flow.freeze(labels.ids, node, "its channels spread over several axes", hints.SEVERAL)


def _axes(flow: Flow, unit_of: np.ndarray, reason: np.ndarray) -> Iterator[np.ndarray]:
    """All axes that tell units apart: why they are frozen, parameters and buffers, and every value."""
    for index in np.unique(reason[reason >= 0]):
        yield np.flatnonzero(reason == index)
    for use in {(use.tensor, use.axis): use for use in flow.uses}.values():
        yield unit_of[use.ids.numpy()]
    for _, labels in _each_labels(flow):
        yield unit_of[labels.ids.numpy()].reshape(-1)


def _groups(
    flow: Flow, unit_of: np.ndarray, first_unit: np.ndarray, refusals: list[Refused | None]
) -> tuple[Group, ...]:
    """Groups with their members, in order."""
    members: list[dict[tuple[str, int], Member]] = [{} for _ in refusals]
    names: list[str] = ["" for _ in refusals]
    places: list[str] = ["" for _ in refusals]
    for use in flow.uses:
        for index, member in _members(use.tensor, use.axis, use.role, unit_of[use.ids.numpy()], first_unit):
            if use.role is Role.PRODUCE:
                names[index], places[index] = names[index] or use.layer, places[index] or use.where
            before = members[index].setdefault((use.tensor, use.axis), member)
            # One tensor may be the output axis of one layer and the input axis of another: it computes the units.
            if before.role is not use.role and use.role is Role.PRODUCE:
                members[index][use.tensor, use.axis] = replace(before, role=Role.PRODUCE)
    for tensor, labels in flow.elements.items():
        units = unit_of[labels.ids.numpy()]
        axis = shrinking_axis(units)
        if axis is not None and units.ndim:
            along = np.moveaxis(units, axis, -1).reshape(-1, units.shape[axis])[0]
            for index, member in _members(tensor, axis, Role.CARRY, along, first_unit):
                members[index].setdefault((tensor, axis), member)
    return tuple(
        Group(
            name,
            int(end - start),
            tuple(own.values()),
            replace(refused, where=refused.where or place) if refused else None,
        )
        for name, place, start, end, own, refused in zip(
            _unique(names), places, first_unit[:-1], first_unit[1:], members, refusals, strict=True
        )
    )


def _members(
    tensor: str, axis: int, role: Role, units: np.ndarray, first_unit: np.ndarray
) -> Iterator[tuple[int, Member]]:
    """The part of one axis that belongs to each group, given the unit of every position."""
    positions = np.flatnonzero(units >= 0)
    if not len(positions):
        return
    positions = positions[np.argsort(units[positions], kind="stable")]
    group = np.searchsorted(first_unit, units[positions], side="right") - 1
    present, starts = np.unique(group, return_index=True)
    for index, part in zip(present.tolist(), np.split(positions, starts[1:]), strict=True):
        width = int(first_unit[index + 1] - first_unit[index])
        yield index, Member(tensor, axis, role, part.reshape(width, -1))


def _unique(names: list[str]) -> Iterator[str]:
    """Names made distinct: the second "a" becomes "a#2"."""
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        yield name if seen[name] == 1 else f"{name}#{seen[name]}"
