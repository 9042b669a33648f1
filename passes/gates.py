"""Gates: one factor per unit, applied wherever the unit is read; the variable of removal itself.

With all gates at one a gated network computes what the program computes; with the gates of some units at zero it
computes what `mask` computes without them. Derivatives in the gates are therefore derivatives of removal, over all
layers that read a unit at once, whatever normalisation stands before them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from .labels.analysis import Analysis
from .labels.rules_layers import is_depthwise
from .program import Program


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

    def __init__(self, source: GateValues, units: np.ndarray, axis: int) -> None:
        """Args: source: current values; units: unit of each position on `axis`, -1 for none; axis: from the end."""
        super().__init__()
        self.source, self.axis = source, axis
        self.register_buffer("units", torch.from_numpy(np.maximum(units, 0)), persistent=False)
        self.register_buffer("gated", torch.from_numpy(units >= 0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` with its channels scaled; samples lie along axis 0, or are the slower part of it."""
        values = self.source.values
        if values is None:
            return x
        factor = values[:, self.units].to(x.dtype)
        factor = torch.where(self.gated, factor, torch.ones_like(factor))
        if len(factor) not in (1, x.shape[0]):
            factor = factor.repeat_interleave(x.shape[0] // len(factor), 0)
        shape = [1] * x.ndim
        shape[0], shape[self.axis] = factor.shape
        return x * factor.reshape(shape)


@dataclass(frozen=True)
class Gated:
    """A program with gates.

    Attributes:
        module: The gated network; shares the weights of the program.
        source: Where its gates are set.
        groups: (first unit, width) by name of the group, for all groups of the program.
        units: Number of gates.
    """

    module: fx.GraphModule
    source: GateValues = field(repr=False)
    groups: dict[str, tuple[int, int]]
    units: int


def insert_gates(program: Program) -> Gated:
    """Puts a gate before every layer that reads channels; the program is left as it was and shares its weights."""
    analysis = program.analysis
    module = fx.GraphModule(program.graph_module, copy.deepcopy(program.graph))
    source = GateValues()
    for node in list(module.graph.nodes):
        layer = module.get_submodule(node.target) if node.op == "call_module" else None
        axis = _channel_axis(layer)
        if axis is None:
            continue
        value = node.all_input_nodes[0]
        units = _units_along(analysis, value.name, axis)
        if units is None:
            continue
        name = f"gate_of_{node.name}"
        module.add_module(name, Gate(source, units, axis))
        with module.graph.inserting_before(node):
            gate = module.graph.call_module(name, (value,))
        node.replace_input_with(value, gate)
    module.recompile()
    starts = {group.name: (int(s), group.width) for group, s in zip(analysis.groups, analysis.first_unit, strict=False)}
    return Gated(module, source, starts, int(analysis.first_unit[-1]))


def _channel_axis(layer: nn.Module | None) -> int | None:
    """The axis, from the end, on which a layer reads channels; None if it reads none."""
    if isinstance(layer, nn.Linear):
        return -1
    if isinstance(layer, _ConvNd) and not is_depthwise(layer):
        return -len(layer.kernel_size) - 1
    return None


def _units_along(analysis: Analysis, value: str, axis: int) -> np.ndarray | None:
    """Unit of each position on an axis of a value, -1 for none; None if the axis holds no units."""
    labels = analysis.values[value]
    if not labels.labelled or any(a != axis + len(labels.shape) for a in labels.axes):
        return None
    return analysis.unit_of[labels.along(axis).numpy()]
