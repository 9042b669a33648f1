"""The layers of a program as latency sees them: their shapes, and the groups that their widths depend on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ...export.layer_model import CHANNELWISE, LayerShape
from ...passes.labels.flow import shape_of
from ...passes.program import Program
from .axes import Axis, AxisReader, scaled


@dataclass(frozen=True)
class Site:
    """One use of a convolution or linear layer.

    Attributes:
        node: Name of its node.
        path: Path of its module.
        family: Its shape at batch 1, without its channels.
        inputs: Channels in.
        outputs: Channels out.
    """

    node: str
    path: str
    family: LayerShape
    inputs: Axis
    outputs: Axis


def layer_sites(program: Program, integer: Collection[str]) -> tuple[Site, ...]:
    """Every use of a convolution or linear layer, in order.

    Args:
        program: The program.
        integer: Module paths of the layers that run on integer grids.
    """
    reader = AxisReader(program)
    found = []
    for node in program.graph.nodes:
        if node.op != "call_module":
            continue
        layer = program.graph_module.get_submodule(str(node.target))
        if isinstance(layer, nn.Linear):
            outputs, inputs = reader.tensor(layer.weight)
            rows = shape_of(node)[1:-1]
            size = (prod(rows),) if rows else ()
            family = LayerShape("linear", node.target in integer, 0, 0, size)
            found.append(Site(node.name, str(node.target), family, inputs, outputs))
        elif isinstance(layer, _ConvNd):
            found.append(_conv_site(reader, node, layer, node.target in integer))
    return tuple(found)


def _conv_site(reader: AxisReader, node: fx.Node, layer: _ConvNd, integer: bool) -> Site:
    first, second = reader.tensor(layer.weight)[:2]
    transposed = isinstance(layer, _ConvTransposeNd)
    depthwise = layer.groups > 1 and layer.weight.shape[1] == 1 and layer.groups == layer.in_channels
    if depthwise:
        copies = layer.out_channels // layer.in_channels
        outputs = scaled(first, copies) if transposed else first
        inputs = first if transposed else _divided(first, copies)
    elif transposed:
        inputs, outputs = first, scaled(second, layer.groups)
    else:
        inputs, outputs = scaled(second, layer.groups), first
    family = LayerShape(
        kind="conv_transpose" if transposed else "conv",
        integer=integer,
        inputs=0,
        outputs=0,
        size=tuple(shape_of(node.all_input_nodes[0])[-len(layer.kernel_size) :]),
        kernel=layer.kernel_size,
        stride=layer.stride,
        padding=_padding(layer),
        dilation=layer.dilation,
        groups=CHANNELWISE if depthwise else layer.groups,
    )
    return Site(node.name, str(node.target), family, inputs, outputs)


def _padding(layer: _ConvNd) -> tuple[int, ...]:
    if isinstance(layer.padding, str):
        same = layer.padding == "same"
        return tuple(d * (k - 1) // 2 if same else 0 for d, k in zip(layer.dilation, layer.kernel_size, strict=True))
    return tuple(int(p) for p in layer.padding)


def _divided(axis: Axis, factor: int) -> Axis:
    return axis[0] // factor, tuple(slope // factor for slope in axis[1])
