"""Data movement: the labels move as the data does."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import fx

from ...errors import UserError
from . import hints
from .flow import Flow, where_of
from .resize import Resize, scaled_size, times_batch
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


def rewrite_expand(resize: Resize, node: fx.Node) -> None:
    """Sizes of expand, where -1 says "as it is": a size that the graph computes must be that of the source by now."""
    sizes = list(arguments(node)["size"])
    old, new = resize.old_shape(node), resize.shape(node)
    source = resize.shape(node.all_input_nodes[0])
    source = (1,) * (len(new) - len(source)) + source
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if before == after or sizes[axis] == -1:
            continue
        scaled = scaled_size(node, sizes[axis], before, after)
        if scaled is not None:
            merged, sizes[axis] = sizes[axis], scaled
            set_argument(node, "size", sizes)
            resize.erase_unused(merged)
            continue
        if isinstance(sizes[axis], fx.Node) and source[axis] != after:
            raise UserError(
                "a size that depends on channels and on a dynamic axis cannot be rewritten",
                where=where_of(node),
                why="the graph computes it from both",
                hint="write the number of channels as a constant, or keep this group whole",
            )
        sizes[axis] = -1 if source[axis] == after else after
    set_argument(node, "size", sizes)


def flow_expand(flow: Flow, node: fx.Node) -> Labels:
    """Expand. A value without channels that is widened along one axis may get any width: new channels there.

    The axis of the batch has none, unless it is several times as long as the batch: then heads are merged into it.
    """
    labels, shape = flow.labels(node.all_input_nodes[0]), flow.shape(node)
    if labels.labelled:
        return moved(labels, lambda ids: ids.expand(shape))
    old = labels.with_rank(len(shape)).shape
    if shape and times_batch(arguments(node)["size"][0]) is not None and old[0] == 1:
        return Labels.on_axis(shape, 0, flow.fresh(shape[0]))
    return _widened(flow, old, shape)


def _widened(flow: Flow, old: tuple[int, ...], new: tuple[int, ...]) -> Labels:
    """New channels on the axis along which a value without any is widened; of several, on axis 1 (heads, images)."""
    grown = [axis for axis in range(1, len(new)) if old[axis] == 1 and new[axis] != 1]
    axis = grown[0] if len(grown) == 1 else 1
    return Labels.on_axis(new, axis, flow.fresh(new[axis])) if axis in grown else Labels.none(new)


def flow_repeat(flow: Flow, node: fx.Node) -> Labels:
    """Repetition of whole axes. A single position may be repeated to any width: see `flow_expand`."""
    shape = flow.shape(node)
    labels = flow.labels(node.all_input_nodes[0]).with_rank(len(shape))
    if not labels.labelled:
        return _widened(flow, labels.shape, shape)
    times = [size // n if n > 1 else 1 for size, n in zip(shape, labels.ids.shape, strict=True)]
    return Labels(labels.ids.repeat(times), shape)


def rewrite_repeat(resize: Resize, node: fx.Node) -> None:
    """How often a single position is repeated."""
    values = arguments(node)
    name = "repeats" if "repeats" in values else "dims"
    old, new = resize.old_shape(node), resize.shape(node)
    source = resize.old_shape(node.all_input_nodes[0])  # a single position, not the one of several that is left
    source = (1,) * (len(new) - len(source)) + source
    times = [1] * (len(new) - len(values[name])) + list(values[name])
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if before != after and source[axis] == 1:
            times[axis] = after
    set_argument(node, name, times)


def flow_repeat_interleave(flow: Flow, node: fx.Node) -> Any:
    """Every position of an axis several times in a row."""
    labels, values = flow.labels(node.all_input_nodes[0]), arguments(node)
    dim, times = values.get("dim"), values.get("repeats")
    if dim is None or not isinstance(times, int):
        flow.freeze(labels.ids, node, "its channels are repeated unevenly", hints.REPEAT)
        return Labels.none(flow.shape(node))
    ids = labels.ids.repeat_interleave(times, dim) if dim % len(labels.shape) in labels.axes else labels.ids
    return Labels(ids, flow.shape(node))


def flow_roll(flow: Flow, node: fx.Node) -> Labels:
    """Roll: along axes without channels, as the shift of windows; its step would count channels."""
    labels, dims = flow.labels(node.all_input_nodes[0]), arguments(node)["dims"]
    axes = [dims] if isinstance(dims, int) else dims or range(len(labels.shape))
    return flow.pin(node, labels, axes, "aten.roll shifts its channels by a fixed number", hints.SHIFT)


def flow_view_as_complex(flow: Flow, node: fx.Node) -> Labels:
    """Pairs of numbers on the last axis as complex numbers."""
    labels = flow.labels(node.all_input_nodes[0])
    labels = flow.pin(node, labels, [-1], "its channels are the two parts of complex numbers", hints.COMPLEX)
    return Labels(labels.ids.squeeze(-1), labels.shape[:-1])


def flow_view_as_real(flow: Flow, node: fx.Node) -> Labels:
    """Complex numbers as pairs on a new last axis."""
    labels = flow.labels(node.all_input_nodes[0])
    return Labels(labels.ids.unsqueeze(-1), (*labels.shape, 2))


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


def flow_unfold(flow: Flow, node: fx.Node) -> Labels:
    """`im2col`, [N, C, H, W] to [N, C k, L]: every channel becomes one row for each of the k places of a window."""
    source, shape = node.all_input_nodes[0], flow.shape(node)
    ids = flow.only_along(node, flow.labels(source), len(flow.shape(source)) - 3)
    return Labels.on_axis(shape, len(shape) - 2, ids.repeat_interleave(prod(arguments(node)["kernel_size"])))


def flow_fold(flow: Flow, node: fx.Node) -> Labels:
    """`col2im`, [N, C k, L] to [N, C, H, W]: the k rows of a channel are one unit."""
    labels, shape, window = flow.labels(node.all_input_nodes[0]), flow.shape(node), prod(arguments(node)["kernel_size"])
    rows = flow.only_along(node, labels, len(labels.shape) - 2).reshape(-1, window)
    return Labels.on_axis(shape, len(shape) - 3, tie(flow, node, rows.t().reshape(-1), window))


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
    "aten.expand": Rule(flow_expand, rewrite_expand),
    "aten.repeat": Rule(flow_repeat, rewrite_repeat),
    "aten.tile": Rule(flow_repeat, rewrite_repeat),
    "aten.roll": Rule(flow_roll),
    "aten.view_as_complex": Rule(flow_view_as_complex),
    "aten.view_as_real": Rule(flow_view_as_real),
    "aten.repeat_interleave": Rule(flow_repeat_interleave),
    "aten.flip": Rule(flow_flip),
    "aten.pixel_shuffle": Rule(flow_pixel_shuffle),
    "aten.pixel_unshuffle": Rule(flow_pixel_unshuffle),
    "aten.im2col": Rule(flow_unfold),
    "aten.col2im": Rule(flow_fold),
    "aten.channel_shuffle": Rule(flow_channel_shuffle),
    "aten.native_channel_shuffle": Rule(flow_channel_shuffle),
}
"""Rules of data movement."""
