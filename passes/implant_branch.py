"""A layer as two branches: some of its filters stay, a stand-in computes the rest, a concatenation joins them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from .labels.flow import is_tensor, shape_of
from .labels.rule import find_rule
from .labels.rules_pointwise import flow_pointwise
from .modulespec import ModuleSpec, attach, build, container, spec_of
from .program import Program
from .prune import sliced


def split(program: Program, path: str, made: Sequence[nn.Module]) -> tuple[str, ...]:
    """Replaces the last filters of a layer by other layers in parallel, in place.

    Batch norm and activations that alone follow the layer go into both branches, so that they fold into the
    convolutions as before. Nodes and layers of the first branch keep their names.

    Args:
        program: Called once at `path`; its shapes are known.
        path: Module path of the convolution or linear layer.
        made: Layers of the stand-in, first to last; they compute as many channels as are replaced.

    Returns:
        Module paths of the new layers.
    """
    graph_module, graph = program.graph_module, program.graph
    (node,) = [n for n in graph.find_nodes(op="call_module") if n.target == path]
    layer = graph_module.get_submodule(path)
    assert isinstance(layer, _ConvNd | nn.Linear)
    width = len(layer.weight)
    kept, replaced = np.split(np.arange(width), [width - len(made[-1].weight)])  # type: ignore[arg-type]
    axis = len(shape_of(node)) - (len(layer.kernel_size) + 1 if isinstance(layer, _ConvNd) else 1)
    paths = _register(graph_module, path, made, layer)
    chain = chain_of(program, node, axis)

    branch, before = node.args[0], node
    for own in paths:
        with graph.inserting_after(before):
            branch = before = graph.call_module(own, (branch,))
        branch.meta = _meta(node) | {"path": own}
    assert isinstance(branch, fx.Node)
    for link in chain[1:]:
        branch = _copied(program, link, branch, replaced)
    end = chain[-1]
    if len(kept):
        for link in chain:
            if link.op == "call_module":
                whole = graph_module.get_submodule(str(link.target))
                graph_module.set_submodule(str(link.target), part(whole, kept))
        with graph.inserting_after(branch):
            joined = graph.call_function(torch.ops.aten.cat.default, ([end, branch], axis))
        joined.meta = _meta(end)
        end.replace_all_uses_with(joined, delete_user_cb=lambda user: user is not joined)
    else:
        end.replace_all_uses_with(branch)
        for link in reversed(chain):
            graph.erase_node(link)
    return tuple(paths)


def _register(graph_module: fx.GraphModule, path: str, made: Sequence[nn.Module], like: nn.Module) -> list[str]:
    """Adds layers beside the one at a path: `conv1_implant`, or `conv1_implant.0` and so on; returns their paths."""
    name = _free(graph_module, f"{path}_implant")
    paths = [name] if len(made) == 1 else [f"{name}.{i}" for i in range(len(made))]
    for layer, own in zip(made, paths, strict=True):
        parent, _, leaf = own.rpartition(".")
        for parameter in layer.parameters():
            parameter.requires_grad_(like.weight.requires_grad)  # type: ignore[union-attr]
        container(graph_module, parent).add_module(leaf, layer.train(like.training))
    return paths


def _free(graph_module: nn.Module, path: str) -> str:
    """A path that no module has yet."""
    taken = dict(graph_module.named_modules())
    return next(name for name in (path, *(f"{path}{i}" for i in range(2, len(taken) + 3))) if name not in taken)


def chain_of(program: Program, node: fx.Node, axis: int) -> list[fx.Node]:
    """A layer and what alone follows it channel by channel: batch norm, activations; what a stand-in replaces.

    Args:
        program: The program.
        node: The one call of the layer.
        axis: The axis of the channels in its value.
    """
    chain = [node]
    tensors = list(program.graph_module.state_dict(keep_vars=True).values())
    while len(chain[-1].users) == 1:
        (user,) = chain[-1].users
        if user.op == "call_module":
            layer = program.graph_module.get_submodule(str(user.target))
            own = all(sum(t is other for other in tensors) == 1 for t in layer.state_dict(keep_vars=True).values())
            once = sum(n.target == user.target for n in program.graph.nodes) == 1
            if not (isinstance(layer, _NormBase) and axis == 1 and own and once):
                break
        else:
            rule = find_rule(program.analysis.rules, user, None) if user.op == "call_function" else None
            alone = user.all_input_nodes == [chain[-1]] and list(user.args).count(chain[-1]) == 1
            if rule is None or rule.flow is not flow_pointwise or not alone or not is_tensor(user):
                break
        chain.append(user)
    return chain


def _copied(program: Program, link: fx.Node, branch: fx.Node, rows: np.ndarray) -> fx.Node:
    """The same operation on the other branch; a batch norm with its share of the channels."""
    graph_module, graph = program.graph_module, program.graph
    original = link.args[0]
    assert isinstance(original, fx.Node)
    with graph.inserting_after(link):
        new = graph.node_copy(link, lambda n: branch if n is original else n)
    new.meta = _meta(link)
    if link.op == "call_module":
        path = _free(graph_module, f"{link.target}_implant")
        parent, _, leaf = path.rpartition(".")
        norm = graph_module.get_submodule(str(link.target))
        container(graph_module, parent).add_module(leaf, part(norm, rows))
        new.target = path
        new.meta["path"] = path
    return new


def part(layer: nn.Module, rows: np.ndarray) -> nn.Module:
    """A convolution, linear or normalisation layer with some of its output channels."""
    spec = spec_of(layer)
    assert spec is not None
    widths = {name: len(rows) for name in ("out_channels", "out_features", "num_features") if name in spec.options}
    made = build(ModuleSpec(spec.type, {**spec.options, **widths}))
    for name, tensor in layer.state_dict(keep_vars=True).items():
        attach(made, name, sliced(tensor, {0: rows}) if tensor.ndim else tensor.clone())
    return made.train(layer.training)


def _meta(node: fx.Node) -> dict[str, Any]:
    return {key: value for key, value in node.meta.items() if key != "val"}
