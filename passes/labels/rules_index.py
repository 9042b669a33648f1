"""Selections by an index tensor: positions known now can be counted anew, others must stay where they are."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from . import hints
from .flow import Flow, op_name_of
from .resize import Resize
from .rule import Key, Rule, arguments
from .rules_parts import gather, new_positions
from .values import Labels
from .weights import attribute_of

_LARGEST_CONSTANT = 2**20


def flow_index(flow: Flow, node: fx.Node) -> Labels:
    """`index_select`, and `x[:, index]` by any number of index tensors.

    One constant list of positions moves labels as it moves elements. Axes that are indexed otherwise are pinned.
    """
    source, indices = index_arguments(node)
    labels, shape = flow.labels(source), flow.shape(node)
    found = constant_positions(flow.graph_module, node)
    if found is not None and found[0] in labels.axes:
        axis, positions = found
        return Labels(labels.ids.index_select(axis, positions % labels.shape[axis]), shape)
    reason = f"{op_name_of(flow, node)} selects its channels by computed or several indices"
    if any(index.meta["val"].dtype == torch.bool for _, index in indices):
        flow.freeze(labels.ids, node, reason, hints.INDEX)
        return Labels.none(shape)
    axes = [axis for axis, _ in indices]
    rest = flow.pin(node, labels, axes, reason, hints.INDEX)
    if not rest.labelled:
        return Labels.none(shape)
    # Neighbouring indices put their axes where they stand, others in front.
    sizes = [size for axis, size in enumerate(rest.ids.shape) if axis not in axes]
    place = axes[0] if axes == list(range(axes[0], axes[0] + len(axes))) else 0
    new = [1] * (len(shape) - len(sizes))
    return Labels(rest.ids.reshape(sizes[:place] + new + sizes[place:]), shape)


def rewrite_index(resize: Resize, node: fx.Node) -> None:
    """The positions counted anew, in a buffer of their own."""
    found = constant_positions(resize.graph_module, node)
    source, indices = index_arguments(node)
    if found is None or resize.mask(source, found[0]) is None:
        return
    axis, positions = found
    mask = resize.mask(source, axis)
    assert mask is not None
    positions, before = positions.to(mask.device) % len(mask), indices[0][1]
    gather(resize, node, source, axis, new_positions(mask)[positions[mask[positions]]])
    resize.erase_unused(before)


def index_arguments(node: fx.Node) -> tuple[fx.Node, list[tuple[int, fx.Node]]]:
    """What is indexed, and the axes with their indices."""
    values = arguments(node)
    source = values["self"]
    if "indices" in values:
        return source, [(axis, index) for axis, index in enumerate(values["indices"]) if index is not None]
    return source, [(values["dim"] % source.meta["val"].ndim, values["index"])]


def constant_positions(graph_module: nn.Module, node: fx.Node) -> tuple[int, Tensor] | None:
    """Axis and positions of the one list that a node selects by, if they are constant."""
    _, indices = index_arguments(node)
    if len(indices) != 1 or indices[0][1].meta["val"].ndim != 1 or indices[0][1].meta["val"].dtype == torch.bool:
        return None
    axis, index = indices[0]
    positions = constant_value(graph_module, index)
    return None if positions is None else (axis, positions.cpu())


def constant_value(graph_module: nn.Module, node: fx.Node) -> Tensor | None:
    """The value of a node that depends on buffers alone (an index and what reshapes it); None if it is computed."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.is_floating_point() or value.numel() > _LARGEST_CONSTANT:
        return None
    if node.op == "get_attr":
        constant = attribute_of(graph_module, str(node.target))
        return None if constant.is_meta else constant
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    inputs = {source: constant_value(graph_module, source) for source in node.all_input_nodes}
    if any(found is None for found in inputs.values()):
        return None
    args, kwargs = map_arg((node.args, node.kwargs), inputs.__getitem__)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def flow_gather(flow: Flow, node: fx.Node) -> Labels:
    """`gather`, `take_along_dim`: along an axis without channels; on all others the index is as long as its source."""
    values = arguments(node)
    shape, axis = flow.shape(node), values["dim"]
    if axis is None:
        labels = flow.labels(values["self"])
        flow.freeze(labels.ids, node, f"{op_name_of(flow, node)} selects from its channels", hints.GATHER)
        return Labels.none(shape)
    reason = f"{op_name_of(flow, node)} selects from its channels"
    parts = [
        flow.pin(node, flow.labels(values[n]), [axis], reason, hints.GATHER)
        for n in ("self", "index" if "index" in values else "indices")
    ]
    thin = [Labels(p.ids, tuple(1 if a == axis % len(shape) else s for a, s in enumerate(p.shape))) for p in parts]
    return Labels(flow.unify(node, thin).ids, shape)


def flow_lookup(flow: Flow, node: fx.Node) -> Labels:
    """`aten.embedding` of a computed table: rows stay, columns pass."""
    values = arguments(node)
    table = flow.pin(
        node, flow.labels(values["weight"]), [0], f"{op_name_of(flow, node)} looks up its channels", hints.GATHER
    )
    shape = flow.shape(node)
    return Labels.on_axis(shape, len(shape) - 1, table.along(1)) if table.labelled else Labels.none(shape)


INDEX: dict[Key, Rule] = {
    "aten.index_select": Rule(flow_index, rewrite_index),
    "aten.index": Rule(flow_index, rewrite_index),
    "aten.gather": Rule(flow_gather),
    "aten.take_along_dim": Rule(flow_gather),
    "aten.embedding": Rule(flow_lookup),
}
"""Rules of selections by index tensors."""
