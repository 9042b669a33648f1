"""Parts of one axis: slices, splits, selections. Their positions are counted anew once channels are gone."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import UserError
from ..functionalise import writes_in_place
from .flow import Flow, where_of
from .resize import Resize
from .rule import Key, Rule, arguments, concrete, set_argument
from .rules_movement import flow_view_op

aten = torch.ops.aten


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


PARTS: dict[Key, Rule] = {
    "aten.slice": Rule(flow_view_op, rewrite_slice),
    "aten.narrow": Rule(flow_view_op, rewrite_narrow),
    "aten.select": Rule(flow_view_op, rewrite_select),
    **{
        f"aten.{name}": Rule(flow_view_op, rewrite_split)
        for name in ("chunk", "split", "split_with_sizes", "unsafe_chunk", "unsafe_split")
    },
    "_operator.getitem": Rule(flow_getitem),
}
"""Rules of operations that take parts of an axis."""
