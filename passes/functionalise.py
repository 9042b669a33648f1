"""In-place operations made functional where nothing else can see the difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload


def functionalise(graph_module: fx.GraphModule, values: Mapping[fx.Node, Any]) -> None:
    """Replaces `relu_`, `add_` and the like by their functional forms, in place on the graph.

    Writing into a tensor can be seen through every other node that shares its memory. The replacement is made if no
    such node is read afterwards and the memory belongs to no parameter or buffer; otherwise the operation stays. A
    write into an input of the network is dropped with it: callers get their inputs back unchanged.

    Args:
        graph_module: An exported graph.
        values: What every node computes, from one run: nodes that share memory share a storage.
    """
    order = {node: position for position, node in enumerate(graph_module.graph.nodes)}
    for node in list(graph_module.graph.nodes):
        functional = _functional_form(node)
        if functional is None:
            continue
        written = node.args[0]
        if not _unseen(node, written, order, values) or values[written].dtype != _result_dtype(node, values):
            continue
        node.target = functional
        # Eager code that goes on with the variable it wrote to reads the result.
        written.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: order[user] > order[node])
    graph_module.graph.lint()


def writes_in_place(graph: fx.Graph) -> bool:
    """Whether a call in the graph writes to one of its arguments, so that sharing memory or not makes a difference."""
    return any(isinstance(n.target, OpOverload) and n.target._schema.is_mutable for n in graph.nodes)


def free_views(graph: fx.Graph) -> None:
    """Turns views into reshapes, in place, unless sharing memory matters.

    A view depends on the memory layout, which changes with widths and memory formats, and `torch.export` drops
    `contiguous` calls where the example inputs did not need them.
    """
    if writes_in_place(graph):
        return
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default


def _functional_form(node: fx.Node) -> OpOverload | None:
    """`aten.relu` for `aten.relu_`, and so on; None if the node does not write into its first argument."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return None
    name = target._opname
    if not name.endswith("_") or name.endswith("__") or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    form = getattr(packet, target._overloadname, None)
    if not isinstance(form, OpOverload):
        return None
    same = [(a.name, str(a.type)) for a in form._schema.arguments]
    return form if same == [(a.name, str(a.type)) for a in target._schema.arguments] else None


def _unseen(node: fx.Node, written: fx.Node, order: Mapping[fx.Node, int], values: Mapping[fx.Node, Any]) -> bool:
    """Whether nothing but `written` itself shows what `node` writes."""
    storage = _storage(values[written])
    for other, position in order.items():
        if other in (written, node) or position > order[node] or storage not in _storages(values.get(other)):
            continue
        if other.op == "get_attr" or any(order[user] > order[node] for user in other.users):
            return False
    return written.op != "get_attr"


def _storage(value: Any) -> int:
    return value.untyped_storage()._cdata


def _storages(value: Any) -> set[int]:
    items = value if isinstance(value, list | tuple) else [value]
    return {_storage(item) for item in items if isinstance(item, Tensor)}


def _result_dtype(node: fx.Node, values: Mapping[fx.Node, Any]) -> torch.dtype:
    """Dtype of the functional form: it follows type promotion, where the in-place form keeps that of its output."""
    operands = [values[n] for n in node.all_input_nodes if isinstance(values[n], Tensor)]
    dtype = operands[0].dtype
    for other in operands[1:]:
        dtype = torch.promote_types(dtype, other.dtype) if other.ndim else dtype
    return dtype
