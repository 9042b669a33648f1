"""From the graph of `torch.export` to one of layers: calls with weights become calls of real `nn` modules.

An exported graph calls `aten.conv2d(x, weight, bias, …)` on parameters that hang in empty containers, with the mode of
batch norm and dropout baked in as an argument. Here every such call becomes a call of an `nn` module that holds the
same parameter objects under the user's own names, so that `.train()`, `.eval()` and rewrites of layers work. All else
stays an ATen call.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from ..errors import UnsupportedError
from .layer_rules import RULES, Layer
from .modulespec import ModuleSpec, attach, build, container
from .opnames import is_assertion, is_known
from .tidy import tidy
from .userline import in_text


def remodulise(exported: fx.GraphModule, source: nn.Module, values: Mapping[fx.Node, Any]) -> fx.GraphModule:
    """Rebuilds an exported graph with layers.

    Args:
        exported: What `ExportedProgram.module()` returns, already free of in-place operations where possible.
        source: The module that was exported; its parameter objects are taken over.
        values: What every node of `exported` computes (see `shapes.values_of`).

    Returns:
        A trainable graph module in eval mode, called with the arguments of `source`.

    Raises:
        UnsupportedError: An operation that a program cannot hold.
    """
    return _Rebuild(exported, source, values).run()


def module_path(node: fx.Node) -> str:
    """Dotted path of the module whose forward made the node; empty for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if not path.startswith("_empty_nn_module_stack")]
    # The second call of a module is recorded as "fc@1".
    return re.sub(r"@\d+", "", paths[-1]) if paths else ""


@dataclass
class _Rebuild:
    """One rebuild: the new graph, and what has been put on its root so far."""

    exported: fx.GraphModule
    source: nn.Module
    values: Mapping[fx.Node, Any]
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    nodes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    transposed: dict[int, Tensor] = field(default_factory=dict)
    layers: dict[str, tuple[ModuleSpec, tuple[tuple[str, int], ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tensors: dict[str, Tensor] = {
            **dict(self.exported.named_parameters(remove_duplicate=False)),
            **dict(self.exported.named_buffers(remove_duplicate=False)),
            **dict(self.source.named_parameters(remove_duplicate=False)),
            **dict(self.source.named_buffers(remove_duplicate=False)),
        }
        self.names: dict[int, list[str]] = {}
        for name, tensor in self.tensors.items():
            self.names.setdefault(id(tensor), []).append(name)
        self.modules = dict(self.source.named_modules(remove_duplicate=False))
        self.taken = set(self.modules) | set(self.tensors)
        self.found = {node: layer for node in self.exported.graph.nodes if (layer := self.layer_of(node))}
        self.inside = self.nodes_inside()
        self.free = {str(n.target) for n in self.exported.graph.nodes if n.users and n not in self.inside}

    def run(self) -> fx.GraphModule:
        for node in self.exported.graph.nodes:
            self.visit(node)
        self.graph.set_codegen(self.exported.graph._codegen)
        return tidy(fx.GraphModule(self.root, self.graph)).eval()

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.nodes[node] = self.graph.placeholder(str(node.target))
        elif node.op == "output":
            self.graph.output(fx.map_arg(node.args[0], self.read))
        elif node.op == "call_function" and node not in self.inside and not is_assertion(node.target):
            self.nodes[node] = self.call(node)
        # get_attr nodes are made where they are read; `_guards_fn` is a call_module that only checks input shapes.

    def read(self, node: fx.Node) -> fx.Node:
        """The new node for an old one."""
        if node not in self.nodes:
            name = str(node.target)
            if name not in self.tensors:
                # Tensors that forward makes from numbers hang in the exported graph as plain attributes.
                self.tensors[name] = operator.attrgetter(name)(self.exported)
            if not isinstance(self.tensors[name], Tensor):
                raise UnsupportedError(
                    "the model holds a constant that is no tensor",
                    where=name,
                    why="torch.export keeps it as an opaque attribute or as a nested graph",
                    hint="take torch.no_grad, autocast and control-flow operators out of forward",
                )
            *path, last = name.split(".")
            attach(container(self.root, ".".join(path)), last, self.tensors[name])
            self.nodes[node] = self.graph.get_attr(name)
        return self.nodes[node]

    def layer_of(self, node: fx.Node) -> Layer | None:
        """The layer that a node becomes, if it becomes one."""
        rule = RULES.get(node.target) if node.op == "call_function" else None
        return rule(node, self.values, self.module_at(module_path(node))) if rule else None

    def nodes_inside(self) -> set[fx.Node]:
        """Tensors and calls that are read by layers alone and are part of them, as the transpose of a weight is."""
        inside: set[fx.Node] = set()
        inputs = {layer.input for layer in self.found.values()}
        for node in reversed(self.exported.graph.nodes):
            parts = all(user in inside or user in self.found for user in node.users)
            if node.users and parts and node not in inputs:
                inside.add(node)
        return inside

    def call(self, node: fx.Node) -> fx.Node:
        path, line = module_path(node), in_text(node.meta.get("stack_trace") or "")
        layer = self.found.get(node)
        if layer:
            target = self.put(layer, path)
            new = self.graph.call_module(target, (self.read(layer.input),))
            path = target
        elif is_known(node.target):
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.read)
            new = self.graph.create_node("call_function", node.target, args, kwargs, name=_node_name(path, node))
        else:
            raise UnsupportedError(
                f"the model uses an operation that secateur does not know: {node.target}",
                where=" ".join(part for part in (path, line) if part),
                why="only ATen operations, and those with a rule of the user, can be rewritten, saved and exported",
                hint="register a rule for it (docs/custom-ops.md) or write it with ordinary torch functions; "
                "take torch.no_grad and autocast blocks out of forward",
            )
        new.meta.update(path=path, source=line)
        return new

    def module_at(self, path: str) -> nn.Module | None:
        return self.modules.get(path)

    def put(self, layer: Layer, stack_path: str) -> str:
        """Puts the layer on the root, once for equal calls; returns its path."""
        tensors = {attribute: self.tensors[str(node.target)] for attribute, node in layer.tensors.items()}
        key = (layer.spec, tuple((attribute, id(tensor)) for attribute, tensor in tensors.items()))
        preferred = self.preferred_path(layer, tensors, stack_path)
        path, count = preferred, 0
        while path in self.layers and self.layers[path] != key:
            count += 1
            path = f"{preferred}_{count}"
        if path in self.layers:
            return path
        self.layers[path] = key
        module = build(layer.spec)
        for attribute, tensor in tensors.items():
            attach(module, attribute, self.transpose(tensor) if layer.transposed and tensor.ndim == 2 else tensor)
        if isinstance(module, _NormBase) and module.track_running_stats:
            counted = self.tensors.get(f"{path}.num_batches_tracked")
            attach(module, "num_batches_tracked", torch.tensor(0) if counted is None else counted)
        parent, _, last = path.rpartition(".")
        holder = container(self.root, parent)
        earlier = holder._modules.get(last)
        if earlier is not None:
            module._modules.update(earlier._modules)
            for attribute, tensor in [*earlier._parameters.items(), *earlier._buffers.items()]:
                if tensor is not None and attribute not in {**module._parameters, **module._buffers}:
                    attach(module, attribute, tensor)
        holder.add_module(last, module)
        return path

    def transpose(self, weight: Tensor) -> Tensor:
        """The transpose of a parameter, a parameter of its own; the same one for all layers that share it."""
        if id(weight) not in self.transposed:
            turned = weight.detach().t().contiguous()
            own = nn.Parameter(turned, weight.requires_grad) if isinstance(weight, nn.Parameter) else turned
            self.transposed[id(weight)] = own
        return self.transposed[id(weight)]

    def preferred_path(self, layer: Layer, tensors: Mapping[str, Tensor], stack_path: str) -> str:
        """The user's name of the layer: the module that was called, else the weight's owner, else a new name."""
        if not tensors:
            known = type(self.module_at(stack_path)).__name__ == layer.spec.type and stack_path
            return stack_path if known else self.fresh(stack_path, layer.spec.type.lower())
        attribute, tensor = next(iter(tensors.items()))
        names = self.names[id(tensor)]
        called = [name for name in names if name == f"{stack_path}.{attribute}"]
        for name in (*called, *names):
            owner, _, last = name.rpartition(".")
            if last == attribute and owner and not self.would_take_more(owner, layer, tensors):
                return owner
        parent, _, last = names[0].rpartition(".")
        stem = last.removesuffix(attribute).rstrip("_") or layer.spec.type.lower()
        return self.fresh(parent, stem, key=(layer.spec, tuple((a, id(t)) for a, t in tensors.items())))

    def would_take_more(self, owner: str, layer: Layer, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the layer, put in the place of `owner`, would apply a tensor that the graph applies by itself.

        A linear layer without a bias next to a `bias` that is added later, for one.
        """
        declared = build(layer.spec)
        names = {*declared._parameters, *declared._buffers}
        return any(
            f"{owner}.{name}" in self.free and self.tensors[f"{owner}.{name}"] is not tensors.get(name)
            for name in names
        )

    def fresh(self, parent: str, stem: str, key: object = None) -> str:
        """A path below `parent` that the user has not taken."""
        base = f"{parent}.{stem}" if parent else stem
        path, count = base, 0
        while path in self.taken or (path in self.layers and (key is None or self.layers[path] != key)):
            count += 1
            path = f"{base}_{count}"
        return path


def _node_name(path: str, node: fx.Node) -> str:
    """A readable name: module path and operation."""
    operation = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", node.name)
    stem = path.replace(".", "_")
    if not stem or stem.endswith(operation):
        return stem or operation
    return f"{stem}_{operation}"
