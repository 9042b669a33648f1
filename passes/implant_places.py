"""Where implanted channels are to lie: last on every axis, except for what a padding puts around them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor, fx

from .labels.flow import shape_of
from .labels.groups import Role
from .labels.rule import arguments, find_rule
from .labels.rules_join import flow_pad, pad_amounts
from .program import Program

Last = Mapping[tuple[str, int], np.ndarray]
"""Positions that come last, by tensor and axis: rows of the weights that compute them."""


class Places:
    """The wanted order of every axis.

    Args:
        program: The program.
        last: Rows that come last, of all weights that compute the same channels.
    """

    def __init__(self, program: Program, last: Last) -> None:
        self._program, self._analysis = program, program.analysis
        self._last = {key: np.asarray(rows) for key, rows in last.items()}
        self._rows: dict[tuple[str, int], np.ndarray] = {}
        # The last entries of both are those of "no unit", -1.
        units = int(self._analysis.first_unit[-1]) + 1
        self._flagged, self._depth = np.zeros(units, dtype=bool), np.zeros(units, dtype=np.int64)
        self._find_rows()
        self._find_depth()

    def outputs(self, name: str, weight: Tensor, axis: int) -> np.ndarray | None:
        """Wanted order of the outputs of a weight, given with its canonical name; None if they stay."""
        last = np.zeros(weight.shape[axis], dtype=bool)
        last[self._last.get((name, axis), [])] = True
        units = self._rows.get((name, axis), np.full(len(last), -1))
        return self._sorted(units, last | self._flagged[units])

    def along(self, node: fx.Node, axis: int) -> np.ndarray | None:
        """Wanted order of an axis of a value; None if it stays."""
        units = self._units(node, axis)
        return self._sorted(units, self._flagged[units])

    def padding(self, node: fx.Node) -> tuple[int, int, int] | None:
        """Axis, front and back of a constant padding that adds channels; None for any other node."""
        rule = find_rule(self._analysis.rules, node, None) if node.op == "call_function" else None
        if rule is None or rule.flow is not flow_pad or arguments(node).get("mode", "constant") != "constant":
            return None
        source = self._analysis.values[node.all_input_nodes[0].name]
        for axis, (front, back) in enumerate(pad_amounts(node, len(shape_of(node)))):
            if (front, back) != (0, 0) and axis in source.axes:
                return (axis, front, back) if min(front, back) >= 0 else None
        return None

    def _find_rows(self) -> None:
        """The unit of every row of the weights that compute channels, and which units come last."""
        for group, start in zip(self._analysis.groups, self._analysis.first_unit, strict=False):
            for member in group.members:
                if member.role is not Role.PRODUCE:
                    continue
                key = (member.tensor, member.axis)
                rows = self._rows.setdefault(key, np.full(self._analysis.axis_sizes[key], -1, dtype=np.int64))
                rows[member.index] = start + np.arange(group.width)[:, None]
        for key, positions in self._last.items():
            if key in self._rows:
                self._flagged[self._rows[key][positions]] = True
        self._flagged[-1] = False

    def _find_depth(self) -> None:
        """How many paddings widened the values before a unit was added."""
        for node in self._program.graph.nodes:
            padded = self.padding(node)
            if padded is not None:
                axis, front, back = padded
                units = self._units(node, axis)
                inner = units[front : len(units) - back]
                added = np.concatenate([units[:front], units[len(units) - back :]])
                level = self._depth[inner].max(initial=0) + 1
                self._depth[added] = np.maximum(self._depth[added], level)
                self._depth[-1] = 0

    def _units(self, node: fx.Node, axis: int) -> np.ndarray:
        """Unit of each position on an axis, -1 for none."""
        labels = self._analysis.values[node.name]
        if set(labels.axes) - {axis}:
            return np.full(labels.shape[axis], -1, dtype=np.int64)
        return self._analysis.unit_of[labels.along(axis).numpy()]

    def _sorted(self, units: np.ndarray, last: np.ndarray) -> np.ndarray | None:
        """The wanted order of an axis; None if all is in order already."""
        index = self._arranged(np.arange(len(units)), units, last)
        return None if (np.diff(index) == 1).all() else index

    def _arranged(self, positions: np.ndarray, units: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Kept positions first; those that were there before the last padding lie between the others, in their order.

        So they lie together, in the order that they have where they are on their own.
        """
        if not last[positions].any():
            return positions
        depth = self._depth[units[positions]]
        outer, ends = depth == depth.max(), last[positions]
        inner = self._arranged(positions[~outer], units, last) if not outer.all() else positions[:0]
        return np.concatenate([positions[outer & ~ends], inner, positions[outer & ends]])
