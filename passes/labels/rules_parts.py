"""Parts of one axis: slices, splits, selections. Their positions are counted anew once channels are gone."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import UserError
from ..functionalise import writes_in_place
from .flow import Flow, attribute_of, where_of
from .resize import Resize
from .rule import Key, Rule, arguments, concrete, set_argument
from .rules_movement import flow_view_op
from .values import Labels

aten = torch.ops.aten

_COPIES = {aten.lift_fresh_copy.default, aten.detach.default, aten.clone.default, aten.alias.default}


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
    if writes_in_place(node.graph):
        raise UserError(
            "irregular positions of an axis cannot be gathered in a network that writes in place",
            where=where_of(node),
            why="a gathered copy would not see what is written to the original",
            hint="keep the group whole, or use operations that return new tensors",
        )
    taken = {name for name, _ in resize.graph_module.named_buffers()}
    name = next(n for n in (f"{node.name}_index{suffix}" for suffix in ("", *range(len(taken) + 1))) if n not in taken)
    resize.graph_module.register_buffer(name, positions.to(node.meta["val"].device))
    with node.graph.inserting_before(node):
        index = node.graph.get_attr(name)
    index.meta = {k: v for k, v in node.meta.items() if k != "val"}
    node.target, node.args, node.kwargs = aten.index_select.default, (source, axis, index), {}


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
    return value[operator.index(node.args[1])] if isinstance(value, tuple) else None  # type: ignore[arg-type]


def flow_index_select(flow: Flow, node: fx.Node) -> Labels:
    """`index_select`, and `x[:, index]` by one index: any positions of an axis, in any order."""
    labels, shape = flow.labels(node.all_input_nodes[0]), flow.shape(node)
    found = constant_index(node)
    if found is None:
        flow.freeze(labels.ids, node, "its elements are selected by computed or several indices")
        return Labels.none(shape)
    axis, index = found
    if axis not in labels.axes:
        return Labels(labels.ids, shape)
    positions = attribute_of(flow.graph_module, str(index.target)).cpu()
    return Labels(labels.ids.index_select(axis, positions % labels.shape[axis]), shape)


def rewrite_index_select(resize: Resize, node: fx.Node) -> None:
    """The index in the new positions, in a buffer of its own."""
    source, found = node.all_input_nodes[0], constant_index(node)
    assert found is not None
    axis, index = found
    mask = resize.mask(source, axis)
    if mask is None:
        return
    positions = attribute_of(resize.graph_module, str(index.target)) % len(mask)
    mask = mask.to(positions.device)
    before = node.all_input_nodes[1]
    gather(resize, node, source, axis, new_positions(mask)[positions[mask[positions]]])
    erase_constant(resize, before)


def constant_index(node: fx.Node) -> tuple[int, fx.Node] | None:
    """Axis and `get_attr` node of the one constant index that a node selects by; None if it is otherwise."""
    values = arguments(node)
    rank = len(node.all_input_nodes[0].meta["val"].shape)
    if "indices" in values:
        given = [(axis, index) for axis, index in enumerate(values["indices"]) if index is not None]
    else:
        given = [(values["dim"] % rank, values["index"])]
    if len(given) != 1 or given[0][1].meta["val"].ndim != 1 or given[0][1].meta["val"].dtype == torch.bool:
        return None
    axis, index = given[0]
    while index.op == "call_function" and index.target in _COPIES:
        index = index.all_input_nodes[0]
    return (axis, index) if index.op == "get_attr" else None


def erase_constant(resize: Resize, node: fx.Node) -> None:
    """Erases the constant that a node reads, with its copies and its buffer, as far as nothing else uses them."""
    while not node.users:
        inputs, target = node.all_input_nodes, str(node.target)
        graph = node.graph
        graph.erase_node(node)
        if inputs:
            node = inputs[0]
            continue
        if all(other.target != target for other in graph.nodes):
            path, _, name = target.rpartition(".")
            delattr(resize.graph_module.get_submodule(path), name)
        return


PARTS: dict[Key, Rule] = {
    "aten.slice": Rule(flow_view_op, rewrite_slice),
    "aten.narrow": Rule(flow_view_op, rewrite_narrow),
    "aten.select": Rule(flow_view_op, rewrite_select),
    **{f"aten.{name}": Rule(flow_view_op, rewrite_split) for name in ("chunk", "split", "split_with_sizes")},
    "_operator.getitem": Rule(flow_getitem),
    "aten.index_select": Rule(flow_index_select, rewrite_index_select),
    "aten.index": Rule(flow_index_select, rewrite_index_select),
}
"""Rules of operations that take parts of an axis."""
