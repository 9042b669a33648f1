"""Shortcuts that pick pixels and pad channels (option A of He et al. 2016) as one integer convolution.

`pad(x[:, :, ::2, ::2])` between two quantisers is Slice and Pad on dequantised values: onnxruntime has no integer Pad,
so it goes to float and back. The same map is a 1x1 convolution with stride 2 whose int8 weight is a selection matrix
(code 1 at scale 1.0, else 0). It is exact on the grid (a sum with one non-zero term) and one integer kernel. Measured
on ResNet-20, it makes the network 3 per cent faster at batch 1 and 32 than Slice and Pad (MaxPool and Pad: 1 per cent;
AveragePool and Pad: slower); at four times the width there is no difference.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx

from ..passes.quant.modules import FakeQuantize
from .lower_context import INT64_MAX, Lowering, arguments, function_name, positive_axis


@dataclass(frozen=True)
class Selection:
    """What a chain of slices and pads computes.

    Attributes:
        channels: For each output channel the channel of the source, or -1 for zeros.
        strides: Step along height and width.
    """

    channels: tuple[int, ...]
    strides: tuple[int, int]


def selection_conv(ctx: Lowering, node: fx.Node, module: FakeQuantize) -> str | None:
    """Emits the convolution, if the input of a quantiser is such a chain from another quantiser.

    Args:
        ctx: The lowering.
        node: The quantiser at the end of the chain.
        module: Its module.

    Returns:
        The output of the convolution, or None.
    """
    chain = _chain(ctx, node)
    if len(chain) < 2:
        return None
    source, *steps = chain
    width = ctx.fact(source).shape[1]
    selection = Selection(tuple(range(width)), (1, 1))
    for step in steps:
        selection = _apply(ctx, step, selection)
    last = steps[-1]
    if -1 not in selection.channels:
        return None  # slices alone stay integer as they are
    codes = np.zeros((len(selection.channels), width, 1, 1), np.int8)
    for output, channel in enumerate(selection.channels):
        if channel >= 0:
            codes[output, channel] = 1
    name = f"{node.name}/select"
    inputs = [
        ctx.builder.constant(f"{name}/weight_codes", codes),
        ctx.builder.constant(f"{name}/weight_scale", np.ones(len(codes), np.float32)),
        ctx.builder.constant(f"{name}/weight_zero_point", np.zeros(len(codes), np.int8)),
    ]
    weight = ctx.emit(node, "DequantizeLinear", inputs, part="select/weight", axis=0)
    ctx.rewrites[name] = f"{last.name}: slice and pad as an integer 1x1 convolution"
    return ctx.emit(
        node,
        "Conv",
        [ctx.value(source), weight],
        part="select",
        kernel_shape=[1, 1],
        strides=list(selection.strides),
    )


def _chain(ctx: Lowering, end: fx.Node) -> list[fx.Node]:
    """The quantiser that feeds a chain of steps, then the steps; empty if there is no such chain."""
    steps: list[fx.Node] = []
    node: Any = end.args[0]
    grids = {_grid(ctx, end)}
    while isinstance(node, fx.Node):
        quantizer = _grid(ctx, node)
        if quantizer is not None:
            start = node
            # Quantisers between the steps drop out only if all round to one grid.
            inner = node.args[0]
            grids.add(quantizer)
            if len(grids) == 1 and isinstance(inner, fx.Node) and _step(ctx, inner) is not None:
                node = inner
                continue
            return [start, *reversed(steps)] if steps else []
        if _step(ctx, node) is None:
            return []
        steps.append(node)
        node = node.args[0]
    return []


def _grid(ctx: Lowering, node: fx.Node) -> tuple[float, int, int, int] | None:
    if node.op != "call_module":
        return None
    module = ctx.module(node)
    if not isinstance(module, FakeQuantize) or not module.enabled:
        return None
    return float(module.scale), int(module.zero_point), module.grid.low, module.grid.high


def _step(ctx: Lowering, node: fx.Node) -> str | None:
    """Which kind of step a node is; None if it is none that a selection can express."""
    if node.op != "call_function":
        return None
    fact = ctx.facts.nodes.get(node)
    if getattr(fact, "rank", 0) != 4:
        return None
    name, a = function_name(node.target), arguments(node)
    if name == "slice":
        whole = a.start in (None, 0) and (a.end is None or (isinstance(a.end, int) and a.end >= _size(ctx, a)))
        channels = positive_axis(a.dim, 4) == 1 and all(v is None or isinstance(v, int) for v in (a.start, a.end))
        return "slice" if channels or (whole and (positive_axis(a.dim, 4) > 1 or a.step == 1)) else None
    if name in ("constant_pad_nd", "pad"):
        return "pad" if _pads_channels(a) else None
    if name == "index_select":
        constant = isinstance(a.index, fx.Node) and a.index.op == "get_attr"
        return "index_select" if constant and positive_axis(a.dim, 4) == 1 else None
    return None


def _size(ctx: Lowering, a: Any) -> int:
    axis = positive_axis(a.dim, 4)
    return INT64_MAX if ctx.fact(a.self).dynamic(axis) else ctx.fact(a.self).shape[axis]


def _pads_channels(a: Any) -> bool:
    """Whether a pad adds zeros on the channel axis only."""
    pad = list(a.pad)
    if getattr(a, "mode", "constant") != "constant" or a.value not in (None, 0) or len(pad) < 6:
        return False
    return all(isinstance(p, int) and p >= 0 for p in pad) and not any(pad[:4]) and not any(pad[6:])


def _apply(ctx: Lowering, node: fx.Node, selection: Selection) -> Selection:
    """The selection after one more step."""
    kind, a = _step(ctx, node), arguments(node)
    if kind == "pad":
        before, after = a.pad[4], a.pad[5]
        return replace(selection, channels=(-1,) * before + selection.channels + (-1,) * after)
    if kind == "index_select":
        index = _tensor(ctx, a.index).tolist()
        return replace(selection, channels=tuple(selection.channels[i] for i in index))
    axis = positive_axis(a.dim, 4)
    if axis == 1:
        return replace(selection, channels=selection.channels[slice(a.start, a.end, a.step)])
    height, width = selection.strides
    if axis == 2:
        return replace(selection, strides=(height * a.step, width))
    if axis == 3:
        return replace(selection, strides=(height, width * a.step))
    return selection


def _tensor(ctx: Lowering, node: fx.Node) -> torch.Tensor:
    holder, _, last = str(node.target).rpartition(".")
    root = ctx.program.graph_module
    return getattr(root.get_submodule(holder) if holder else root, last)
