"""Data movement: the labels move as the data does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...errors import UserError
from .flow import Flow, attribute_of
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


# Parts of one axis.


def rewrite_slice(resize: Resize, node: fx.Node) -> None:
    """Start, end and step in the new positions.

    Positions taken with a step may be irregular once channels are gone: then they are gathered by an index.
    """
    values = arguments(node)
    source = node.all_input_nodes[0]
    axis = values["dim"] % len(resize.shape(node))
    mask = resize.mask(source, axis)
    if mask is None:
        return
    start, end, step = concrete((values["start"], values["end"], values["step"]))
    old = torch.arange(len(mask))[slice(start, end, step)]
    kept = new_positions(mask)[old[mask[old]]]
    steps = kept.diff().unique()
    if len(steps) <= 1:
        stride = int(steps[0]) if len(steps) else 1
        node.args, node.kwargs = (source, axis, int(kept[0]), int(kept[-1]) + 1, stride), {}
    else:
        gather(resize, node, source, axis, kept)


def rewrite_narrow(resize: Resize, node: fx.Node) -> None:
    """As the slice that it is."""
    values = arguments(node)
    start, length = concrete((values["start"], values["length"]))
    source = node.all_input_nodes[0]
    start %= resize.old_shape(source)[values["dim"]]
    node.target, node.args, node.kwargs = aten.slice.Tensor, (source, values["dim"], start, start + length), {}
    rewrite_slice(resize, node)


def gather(resize: Resize, node: fx.Node, source: fx.Node, axis: int, positions: Tensor) -> None:
    """Turns a node into an `index_select` by a constant index, held in a buffer."""
    if any(is_inplace(user) for user in node.users):
        raise UserError(
            "a strided slice that is written to cannot be rewritten",
            where=str(node.meta.get("source", node.name)),
            hint="keep its group whole, or write the result to a new tensor",
        )
    name = f"{node.name}_index"
    resize.graph_module.register_buffer(name, positions)
    with node.graph.inserting_before(node):
        index = node.graph.get_attr(name)
    index.meta = {k: v for k, v in node.meta.items() if k != "val"}
    node.target, node.args, node.kwargs = aten.index_select.default, (source, axis, index), {}


def is_inplace(node: fx.Node) -> bool:
    """Whether a call writes to its first argument."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def new_positions(mask: Tensor) -> Tensor:
    """New position of every old one that stays, int64 [old size]."""
    return mask.cumsum(0) - 1


def rewrite_select(resize: Resize, node: fx.Node) -> None:
    """Index in the new positions."""
    values = arguments(node)
    source = node.all_input_nodes[0]
    axis = values["dim"] % len(resize.old_shape(source))
    mask = resize.mask(source, axis)
    if mask is not None:
        set_argument(node, "index", int(new_positions(mask)[values["index"]]))


def rewrite_split(resize: Resize, node: fx.Node) -> None:
    """`chunk`, `split` and `split_with_sizes` become a split by the new sizes."""
    source = node.all_input_nodes[0]
    axis = arguments(node).get("dim", 0) % len(resize.old_shape(source))
    if resize.mask(source, axis) is not None:
        node.target, node.kwargs = aten.split_with_sizes.default, {}
        node.args = (source, [shape[axis] for shape in resize.shapes(node)], axis)


def flow_getitem(flow: Flow, node: fx.Node) -> Any:
    """One of several outputs."""
    value = flow.values[node.all_input_nodes[0]]
    return value[node.args[1]] if isinstance(value, tuple) else None


def flow_index_select(flow: Flow, node: fx.Node) -> Labels:
    """Selection by a constant index (a buffer)."""
    values = arguments(node)
    labels, index = flow.labels(values["self"]), values["index"]
    axis = values["dim"] % len(labels.shape)
    if axis not in labels.axes:
        return Labels(labels.ids, flow.shape(node))
    if index.op != "get_attr":
        flow.freeze(labels.ids, node, "its channels are selected by a computed index")
        return Labels.none(flow.shape(node))
    positions = attribute_of(flow.graph_module, str(index.target)).cpu()
    return Labels(labels.ids.index_select(axis, positions), flow.shape(node))


def rewrite_index_select(resize: Resize, node: fx.Node) -> None:
    """The index in the new positions, in a buffer of its own."""
    values = arguments(node)
    source = values["self"]
    axis = values["dim"] % len(resize.old_shape(source))
    mask = resize.mask(source, axis)
    if mask is None:
        return
    positions = attribute_of(resize.graph_module, str(values["index"].target))
    kept = positions[mask[positions]]
    gather(resize, node, source, axis, new_positions(mask)[kept])


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
    "aten.slice": Rule(flow_view_op, rewrite_slice),
    "aten.narrow": Rule(flow_view_op, rewrite_narrow),
    "aten.select": Rule(flow_view_op, rewrite_select),
    **{f"aten.{name}": Rule(flow_view_op, rewrite_split) for name in ("chunk", "split", "split_with_sizes")},
    "_operator.getitem": Rule(flow_getitem),
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
    "aten.index_select": Rule(flow_index_select, rewrite_index_select),
    "aten.pixel_shuffle": Rule(flow_pixel_shuffle),
    "aten.pixel_unshuffle": Rule(flow_pixel_unshuffle),
    "aten.channel_shuffle": Rule(flow_channel_shuffle),
    "aten.native_channel_shuffle": Rule(flow_channel_shuffle),
}
"""Rules of data movement."""
