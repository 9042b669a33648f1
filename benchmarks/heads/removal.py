"""Which heads and hidden neurons go: the lowest of their kind over all layers, by a ranking."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur.compress.sensitivity.table import Sensitivity
from secateur.passes.program import Program

KINDS: Mapping[str, str] = {"heads": "attention.self.query", "neurons": "intermediate.dense"}
"""Kinds of units, by the end of the name of their groups."""


def kept(program: Program, table: Sensitivity, removed: float, kinds: list[str]) -> dict[str, np.ndarray]:
    """Kept units by group, if this share of the units of every kind goes; every layer keeps at least one.

    Heads compete with heads and neurons with neurons, so that no ranking depends on how it weighs the two.

    Args:
        program: The program.
        table: Scores; low ones go first.
        removed: Share of the units of a kind.
        kinds: Keys of `KINDS`.

    Raises:
        ValueError: The program has no such units.
    """
    keep: dict[str, np.ndarray] = {}
    for kind in kinds:
        groups = [g for g in program.groups if g.frozen is None and g.name.endswith(KINDS[kind])]
        if not groups:
            raise ValueError(f"no {kind} can be removed")
        left = {group.name: set(group.units) for group in groups}
        order = sorted(
            (float(table.groups[group.name].delta_loss[unit]), group.name, unit)
            for group in groups
            for unit in group.units
        )
        goal = round(removed * len(order))
        for _, name, unit in order:
            if goal and len(left[name]) > 1:
                left[name].remove(unit)
                goal -= 1
        keep.update({name: np.array(sorted(units)) for name, units in left.items()})
    return keep
