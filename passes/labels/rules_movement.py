"""Data movement: the labels move as the data does."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .flow import Flow
from .resize import Resize
from .rule import Key, Rule, arguments, concrete, op_name, set_argument
from .rules_layers import tie
from .values import Labels, moved, reshaped

aten = torch.ops.aten

# Views: the operation itself, run on the ids.


def flow_view_op(flow: Flow, node: fx.Node) -> Any:
    """Permute, transpose, slice, select, split, squeeze …: the same call on the ids."""
    source = node.all_input_nodes[0]
    args, kwargs = concrete(node.args[1:]), concrete(node.kwargs)
    return moved(flow.labels(source), lambda ids: functional(node)(ids, *args, **kwargs))


def functional(node: fx.Node) -> Any:
    """The operation of a node, out of place."""
    overload = node.target
    assert isinstance(overload, torch._ops.OpOverload)
    packet = getattr(aten, op_name(node).removeprefix("aten."))
    return (
        getattr(packet, overload._overloadname, packet.default) if overload.overloadpacket is not packet else overload
    )


def flow_reshape(flow: Flow, node: fx.Node) -> Labels:
    """View, reshape, flatten, unflatten: row-major."""
    out = reshaped(flow.labels(node.all_input_nodes[0]), flow.shape(node))
    flow.rectangle(out)
    return out


def rewrite_sizes(resize: Resize, node: fx.Node) -> None:
    """Sizes of view, reshape, expand, zeros …."""
    values = arguments(node)
    name = "size" if "size" in values else "shape"
    resize.resize_argument(node, name, values[name])


def rewrite_unflatten(resize: Resize, node: fx.Node) -> None:
    """Sizes of the axes that one axis is split into."""
    values = arguments(node)
    old = resize.old_shape(node.all_input_nodes[0])
    start, sizes = values["dim"] % len(old), list(values["sizes"])
    new = resize.shape(node)[start : start + len(sizes)]
    before = resize.old_shape(node)[start : start + len(sizes)]
    set_argument(node, "sizes", [s if b == n or s == -1 else n for s, b, n in zip(sizes, before, new, strict=True)])


def rewrite_squeeze(resize: Resize, node: fx.Node) -> None:
    """`squeeze()` without axes would also drop an axis that has become 1 wide: names the axes."""
    if set(arguments(node)) == {"self"}:
        source = node.all_input_nodes[0]
        dropped = [axis for axis, size in enumerate(resize.old_shape(source)) if size == 1]
        node.target = aten.squeeze.dims
        node.args = (source, dropped)


# Repetition.


def flow_expand(flow: Flow, node: fx.Node) -> Labels:
    """Expand. A value without channels that is widened along one axis may get any width: new channels there."""
    labels, shape = flow.labels(node.all_input_nodes[0]), flow.shape(node)
    if labels.labelled:
        return moved(labels, lambda ids: ids.expand(shape))
    old = (1,) * (len(shape) - len(labels.shape)) + labels.shape
    grown = [axis for axis in range(1, len(shape)) if old[axis] != shape[axis]]
    if len(grown) != 1:
        return Labels.none(shape)
    return Labels.on_axis(shape, grown[0], flow.fresh(shape[grown[0]]))


def flow_repeat(flow: Flow, node: fx.Node) -> Labels:
    """Repetition of whole axes."""
    labels, shape = flow.labels(node.all_input_nodes[0]), flow.shape(node)
    lead = len(shape) - len(labels.shape)
    ids = labels.ids.reshape([1] * lead + list(labels.ids.shape))
    times = [size // n if n > 1 else 1 for size, n in zip(shape, ids.shape, strict=True)]
    return Labels(ids.repeat(times), shape)


def flow_repeat_interleave(flow: Flow, node: fx.Node) -> Any:
    """Every position of an axis several times in a row."""
    labels, values = flow.labels(node.all_input_nodes[0]), arguments(node)
    dim, times = values.get("dim"), values.get("repeats")
    if dim is None or not isinstance(times, int):
        flow.freeze(labels.ids, node, "its channels are repeated unevenly")
        return Labels.none(flow.shape(node))
    ids = labels.ids.repeat_interleave(times, dim) if dim % len(labels.shape) in labels.axes else labels.ids
    return Labels(ids, flow.shape(node))


def flow_flip(flow: Flow, node: fx.Node) -> Labels:
    """Reversal of axes."""
    labels = flow.labels(node.all_input_nodes[0])
    return Labels(labels.ids.flip(arguments(node)["dims"]), labels.shape)


# Channels and pixels.


def flow_pixel_shuffle(flow: Flow, node: fx.Node) -> Labels:
    """[N, C r², H, W] to [N, C, rH, rW]: the r² channels of an output channel are one unit."""
    labels, shape = flow.labels(node.all_input_nodes[0]), flow.shape(node)
    channel = len(shape) - 3
    parts = arguments(node)["upscale_factor"] ** 2
    ids = flow.only_along(node, labels, channel).reshape(-1, parts)
    return Labels.on_axis(shape, channel, tie(flow, node, ids.t().reshape(-1), parts))


def flow_pixel_unshuffle(flow: Flow, node: fx.Node) -> Labels:
    """[N, C, rH, rW] to [N, C r², H, W]."""
    labels, shape = flow.labels(node.all_input_nodes[0]), flow.shape(node)
    channel = len(shape) - 3
    ids = flow.only_along(node, labels, channel)
    return Labels.on_axis(shape, channel, ids.repeat_interleave(arguments(node)["downscale_factor"] ** 2))


def flow_channel_shuffle(flow: Flow, node: fx.Node) -> Labels:
    """[N, g n, …] seen as [g, n] and transposed: the channels at one position of every group are one unit."""
    labels, groups = flow.labels(node.all_input_nodes[0]), arguments(node)["groups"]
    ids = flow.only_along(node, labels, 1)
    row = tie(flow, node, ids, groups)
    return Labels.on_axis(labels.shape, 1, row.repeat_interleave(groups))


VIEW_NAMES = """permute transpose t movedim moveaxis swapaxes swapdims unsqueeze unbind adjoint numpy_T mT"""

MOVEMENT: dict[Key, Rule] = {
    **{f"aten.{name}": Rule(flow_view_op) for name in VIEW_NAMES.split()},
    "aten.squeeze": Rule(flow_view_op, rewrite_squeeze),
    "aten.view": Rule(flow_reshape, rewrite_sizes),
    "aten._unsafe_view": Rule(flow_reshape, rewrite_sizes),
    "aten.reshape": Rule(flow_reshape, rewrite_sizes),
    "aten.flatten": Rule(flow_reshape),
    "aten.ravel": Rule(flow_reshape),
    "aten.view_as": Rule(flow_reshape),
    "aten.reshape_as": Rule(flow_reshape),
    "aten.unflatten": Rule(flow_reshape, rewrite_unflatten),
    "aten.expand": Rule(flow_expand, rewrite_sizes),
    "aten.repeat": Rule(flow_repeat),
    "aten.repeat_interleave": Rule(flow_repeat_interleave),
    "aten.flip": Rule(flow_flip),
    "aten.pixel_shuffle": Rule(flow_pixel_shuffle),
    "aten.pixel_unshuffle": Rule(flow_pixel_unshuffle),
    "aten.channel_shuffle": Rule(flow_channel_shuffle),
    "aten.native_channel_shuffle": Rule(flow_channel_shuffle),
}
"""Rules of data movement."""
