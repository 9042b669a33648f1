"""Gates: one factor per unit, applied wherever the unit is read; the variable of removal itself.

With all gates at one a gated network computes what the program computes; with the gates of some units at zero it
computes what `mask` computes without them. Derivatives in the gates are therefore derivatives of removal, over all
layers that read a unit at once, whatever normalisation stands before them.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ..errors import Refused, UnsupportedError
from .labels.analysis import Analysis
from .program import Program
from .sample_axis import SampleAxis, sample_axes
from .widths import weigh_average


@dataclass
class GateValues:
    """What the gates of a network are at the moment: set `values` before running it.

    Attributes:
        values: [1, units], the same for all samples, or [samples, units]; None lets everything pass.
    """

    values: Tensor | None = None


class Gate(nn.Module):
    """Multiplies each channel of its input by the gate of the unit it belongs to."""

    units: Tensor
    gated: Tensor

    def __init__(
        self, source: GateValues, units: np.ndarray, axis: int, samples: SampleAxis | Refused | None = None
    ) -> None:
        """Puts a gate on one axis.

        Args:
            source: Where its current values are found.
            units: Unit of each position on the axis, -1 for none.
            axis: Counted from the end.
            samples: Where the samples lie, or why they may not have gates of their own; None: on axis 0.
        """
        super().__init__()
        self.source, self.axis = source, axis
        self.samples = SampleAxis(0) if samples is None else samples
        self.everywhere = bool((units >= 0).all())
        self.register_buffer("units", torch.from_numpy(np.maximum(units, 0)), persistent=False)
        self.register_buffer("gated", torch.from_numpy(units >= 0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its channels scaled.

        Raises:
            UnsupportedError: Samples are to have gates of their own, and the value does not keep them apart.
        """
        values = self.source.values
        if values is None:
            return x
        factor = values[:, self.units].to(x.dtype)
        if not self.everywhere:
            factor = torch.where(self.gated, factor, torch.ones_like(factor))
        channel = x.ndim + self.axis
        if len(factor) == 1:
            return x * factor.reshape([-1 if axis == channel else 1 for axis in range(x.ndim)])
        if isinstance(self.samples, Refused):
            raise refusal(self.samples)
        return x * self.samples.spread(factor, x.shape, channel)


def refusal(refused: Refused) -> UnsupportedError:
    """The error of asking for gates of single samples where there are none."""
    return UnsupportedError(
        "the samples of a batch cannot have gates of their own",
        where=refused.where,
        why=refused.reason,
        hint=refused.hint,
    )


@dataclass(frozen=True)
class Gated:
    """A program with gates.

    Attributes:
        module: The gated network; shares the weights of the program.
        source: Where its gates are set.
        groups: (first unit, width) by name, for all groups that are not frozen, in their order.
        units: Number of gates.
        outputs: Where the samples lie in each leaf of the output, or why nowhere; None for what is no tensor.
        refused: Why samples cannot have gates of their own: the first gate for which that is so; None if they can.
    """

    module: fx.GraphModule
    source: GateValues = field(repr=False)
    groups: dict[str, tuple[int, int]]
    units: int
    outputs: tuple[SampleAxis | Refused | None, ...]
    refused: Refused | None


@dataclass(frozen=True)
class _Reading:
    """A value, the axis (from the end) on which layers read its units, and the unit of each position there."""

    value: fx.Node
    axis: int
    units: np.ndarray
    readers: list[fx.Node]


def insert_gates(program: Program) -> Gated:
    """Puts gates before every layer that reads units; the program is left as it was and shares its weights.

    A value that several layers read alike has one gate. Frozen groups have none: nothing of them can be removed.
    """
    analysis = program.analysis
    groups, number = _number_units(analysis)
    readings = _readings(program, number)
    results = pytree.tree_leaves(program.graph.output_node().args[0])
    tensors = [n for n in results if isinstance(n, fx.Node) and isinstance(n.meta.get("val"), Tensor)]
    averaged = [node for node in program.graph.nodes if node.name in {value for _, value in program.analysis.averaged}]
    layouts = sample_axes(program, dict.fromkeys([*(r.value for r in readings), *averaged, *tensors]))

    with warnings.catch_warnings():
        # torch deprecates a class of its own that copying its input signature still touches.
        warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
        module = fx.GraphModule(program.graph_module, copy.deepcopy(program.graph))
    twin = dict(zip(program.graph.nodes, list(module.graph.nodes), strict=True))
    source = GateValues()
    refused = None
    for count, reading in enumerate(readings):
        samples = _off_channels(reading, layouts[reading.value])
        refused = refused or (samples if isinstance(samples, Refused) else None)
        device = reading.value.meta["val"].device
        name = f"gate_{count}_of_{reading.value.name}"
        module.add_module(name, Gate(source, reading.units, reading.axis, samples).to(device))
        with module.graph.inserting_before(twin[reading.readers[0]]):
            gate = module.graph.call_module(name, (twin[reading.value],))
        for reader in reading.readers:
            twin[reader].replace_input_with(twin[reading.value], gate)
    for name, value in program.analysis.averaged:
        nodes = {node.name: node for node in program.graph.nodes}
        units = _units_along(program.analysis, value, -1, number)
        if units is not None:
            layout = layouts[nodes[value]]
            gate = Gate(source, units, -1, layout).to(nodes[value].meta["val"].device)
            weigh_average(module, twin[nodes[name]], gate)
            refused = refused or (layout if isinstance(layout, Refused) else None)
    module.recompile()
    outputs = tuple(layouts.get(leaf) if isinstance(leaf, fx.Node) else None for leaf in results)
    return Gated(module, source, groups, sum(width for _, width in groups.values()), outputs, refused)


def _number_units(analysis: Analysis) -> tuple[dict[str, tuple[int, int]], np.ndarray]:
    """First gate and width of each group that may shrink, and the gate of every label id, -1 for none."""
    groups: dict[str, tuple[int, int]] = {}
    gate_of = np.full(int(analysis.first_unit[-1]) + 1, -1, dtype=np.int64)  # the last entry is that of unit -1
    start = 0
    for first, group in zip(analysis.first_unit, analysis.groups, strict=False):
        if group.frozen is None:
            groups[group.name] = (start, group.width)
            gate_of[first : first + group.width] = np.arange(start, start + group.width)
            start += group.width
    return groups, gate_of[analysis.unit_of]


def _readings(program: Program, number: np.ndarray) -> list[_Reading]:
    """What is read where, each value once for every axis on which it is read."""
    found: dict[tuple[fx.Node, int], _Reading] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for reader, source, axis in program.analysis.readings:
        node, value = nodes[reader], nodes[source]
        known = found.get((value, axis))
        if known is not None:
            known.readers.append(node)
            continue
        units = _units_along(program.analysis, value.name, axis, number)
        if units is not None:
            found[value, axis] = _Reading(value, axis, units, [node])
    return list(found.values())


def _units_along(analysis: Analysis, value: str, axis: int, number: np.ndarray) -> np.ndarray | None:
    """Gate of each position on an axis of a value, -1 for none; None if nothing on the axis has a gate."""
    labels = analysis.values[value]
    units = number[labels.ids.numpy()]
    if not (units >= 0).any():
        return None
    axis += units.ndim
    rows = np.moveaxis(units, axis, -1).reshape(-1, units.shape[axis])
    if (rows != rows[0]).any():
        raise AssertionError(f"units that are read along axis {axis} of {value} differ along another")
    return np.broadcast_to(rows[0], labels.shape[axis])


def _off_channels(reading: _Reading, samples: SampleAxis | Refused) -> SampleAxis | Refused:
    """The layout, unless samples and channels share an axis."""
    if isinstance(samples, SampleAxis) and samples.axis == reading.value.meta["val"].ndim + reading.axis:
        return Refused("its samples lie on the axis of its channels", reading.value.name, "give them an axis each")
    return samples
