"""Blocks of `torch.no_grad()` and switched-off autocast, which torch.export keeps as nested graphs, laid open.

Rotary embeddings of library models are computed in both. What leaves a block without gradients is detached, which is
the same for every derivative; a block that switches autocast off is what the graph does anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

_GRADIENTS, _AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def lay_open(exported: fx.GraphModule) -> None:
    """Replaces the nested graphs of such blocks by their nodes, in place; other nested graphs stay."""
    changed = True
    while changed:  # blocks lie in blocks
        changed = False
        for node in list(exported.graph.nodes):
            block = _block(exported, node)
            if block is not None:
                _inline(exported, node, *block)
                changed = True
    exported.graph.eliminate_dead_code()
    exported.recompile()


def _block(exported: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...], bool] | None:
    """The nested graph of a block, its operands, and whether gradients stop at its end; None if it is no such block."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    kind, args = node.target.name(), node.args
    if kind == _GRADIENTS:
        enabled, nested, operands = args[0], args[1], args[2:]
        detached = not enabled
    elif kind == _AUTOCAST and not args[2]:
        nested, operands, detached = args[4], args[5:], False
    else:
        return None
    if not isinstance(nested, fx.Node) or nested.op != "get_attr":
        return None
    module = exported.get_submodule(str(nested.target))
    return (module, tuple(operands), detached) if isinstance(module, fx.GraphModule) else None


def _inline(
    exported: fx.GraphModule, node: fx.Node, nested: fx.GraphModule, operands: tuple[Any, ...], detached: bool
) -> None:
    graph = exported.graph
    inner = list(nested.graph.nodes)
    placeholders = [n for n in inner if n.op == "placeholder"]
    env: dict[fx.Node, Any] = dict(zip(placeholders, operands, strict=True))
    with graph.inserting_before(node):
        for old in inner:
            if old.op == "get_attr":
                env[old] = graph.get_attr(_taken_over(exported, nested, str(old.target)))
            elif old.op not in ("placeholder", "output"):
                env[old] = graph.node_copy(old, lambda n: env[n])
        results = fx.map_arg(inner[-1].args[0], lambda n: env[n])
        if detached:
            results = fx.map_arg(results, lambda n: _detached(graph, n))
    for user in list(node.users):
        # The results are a tuple, of which every user takes one.
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if not isinstance(node.meta.get("val"), Tensor):
        return node
    new = graph.call_function(torch.ops.aten.detach.default, (node,))
    new.meta.update(node.meta)
    return new


def _taken_over(exported: fx.GraphModule, nested: fx.GraphModule, name: str) -> str:
    """Name under which the outer graph holds what the nested one reads: a tensor, or a graph inside it."""
    holder, _, last = name.rpartition(".")
    value = getattr(nested.get_submodule(holder) if holder else nested, last)
    path = f"_of_region_{len(exported._modules) + len(exported._buffers) + len(exported.__dict__)}_{last}"
    while hasattr(exported, path):
        path += "_"
    setattr(exported, path, value)
    return path
