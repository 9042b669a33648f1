"""Parameters and buffers of a graph: their names, and which of them are read as weights without being a layer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn

from .rule import arguments, op_name


def canonical_names(graph_module: nn.Module) -> dict[int, str]:
    """Dotted name of every parameter and buffer by its identity; the first name of a shared one."""
    names: dict[int, str] = {}
    for name, tensor in graph_module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    for name, tensor in graph_module.named_buffers():
        names.setdefault(id(tensor), name)
    return names


def attribute_of(graph_module: nn.Module, target: str) -> Any:
    """The object that a `get_attr` node reads."""
    path, _, name = target.rpartition(".")
    return getattr(graph_module.get_submodule(path), name)


CONTRACTIONS: Mapping[str, Sequence[str]] = {
    "aten.matmul": ("self", "other"),
    "aten.mm": ("self", "mat2"),
    "aten.bmm": ("self", "mat2"),
    "aten.addmm": ("mat1", "mat2"),
    "aten.baddbmm": ("batch1", "batch2"),
    "aten.linear": ("input", "weight"),
    "aten.einsum": ("tensors",),
}
"""Operations that multiply and sum, with the arguments that are multiplied."""


def contracted_weights(graph_module: fx.GraphModule, names: Mapping[int, str]) -> frozenset[fx.Node]:
    """Nodes of free parameters that are read by contractions alone, with a computed tensor on the other side."""
    by_tensor: dict[str, list[fx.Node]] = {}
    for node in graph_module.graph.find_nodes(op="get_attr"):
        tensor = attribute_of(graph_module, str(node.target))
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.ndim >= 2:
            by_tensor.setdefault(names.get(id(tensor), ""), []).append(node)
    layers = {f"{node.target}." for node in graph_module.graph.find_nodes(op="call_module")}
    return frozenset(
        node
        for name, nodes in by_tensor.items()
        if name.rpartition(".")[0] + "." not in layers
        and all(_reads_as_weight(user, node) for node in nodes for user in node.users)
        for node in nodes
    )


def _reads_as_weight(user: fx.Node, node: fx.Node) -> bool:
    names = CONTRACTIONS.get(op_name(user)) if user.op == "call_function" else None
    if names is None:
        return False
    values = arguments(user)
    operands = values["tensors"] if names == ("tensors",) else [values[name] for name in names]
    others = [operand for operand in operands if operand is not node]
    return len(others) == 1 and len(operands) == 2 and others[0].op != "get_attr"
