"""What is kept: checked against the groups, and as positions in every tensor."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import UserError
from .analysis import Analysis
from .groups import Group

Keep = Mapping[str, Sequence[int] | np.ndarray]
"""Kept units by group name; groups that are not named are kept whole."""


def check_keep(analysis: Analysis, keep: Keep) -> dict[str, np.ndarray]:
    """Checks a selection; groups that lose nothing are left out.

    Returns:
        Kept units by group name, ascending int64.

    Raises:
        UserError: An unknown or frozen group, an index out of range or twice, or a group that would be emptied.
    """
    groups = {group.name: group for group in analysis.groups}
    checked = {}
    for name, units in keep.items():
        if name not in groups:
            close = difflib.get_close_matches(name, groups, n=1)
            raise UserError(
                f"no group is called {name!r}",
                hint=f"did you mean {close[0]!r}?" if close else "program.groups lists the groups",
            )
        kept = _check_units(groups[name], np.asarray(units))
        if len(kept) < groups[name].width:
            checked[name] = kept
    return checked


def _check_units(group: Group, units: np.ndarray) -> np.ndarray:
    if units.size == 0:
        raise UserError(
            f"group {group.name!r} would be left without units",
            why="an axis of width 0 computes nothing",
            hint=f"keep at least one of its {group.width} units",
        )
    if not np.issubdtype(units.dtype, np.integer) or units.ndim != 1:
        raise UserError(f"kept units of group {group.name!r} are not a list of integers")
    kept = np.unique(units).astype(np.int64)
    if kept[0] < 0 or kept[-1] >= group.width:
        wrong = int(kept[0] if kept[0] < 0 else kept[-1])
        raise UserError(f"group {group.name!r} has no unit {wrong}", why=f"its units are 0 to {group.width - 1}")
    if len(kept) < len(units):
        values, counts = np.unique(units, return_counts=True)
        raise UserError(f"unit {int(values[counts > 1][0])} of group {group.name!r} is kept twice")
    if group.frozen is not None and len(kept) < group.width:
        raise UserError(
            f"group {group.name!r} cannot be pruned",
            where=group.frozen.where,
            why=group.frozen.reason,
            hint=group.frozen.hint,
        )
    return kept


def kept_positions(analysis: Analysis, kept: Mapping[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """Positions that stay on every axis of every tensor that loses some.

    Args:
        analysis: The analysis of the program.
        kept: Kept units by group, from `check_keep`.

    Returns:
        Tensor name to axis to sorted positions.
    """
    gone: dict[tuple[str, int], list[np.ndarray]] = {}
    for group in analysis.groups:
        if group.name in kept:
            lost = np.setdiff1d(np.arange(group.width), kept[group.name])
            for member in group.members:
                gone.setdefault((member.tensor, member.axis), []).append(member.index[lost].reshape(-1))
    positions: dict[str, dict[int, np.ndarray]] = {}
    for (tensor, axis), parts in gone.items():
        stay = np.setdiff1d(np.arange(analysis.axis_sizes[tensor, axis]), np.concatenate(parts))
        positions.setdefault(tensor, {})[axis] = stay
    return positions
