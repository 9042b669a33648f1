"""A graph module as a JSON document and a table of tensors, and back: the inside of a saved program.

`torch.fx` turns a graph into Python source, names included, and runs it. So every name of a document that is read is
checked before it reaches a graph, and operations and layers come only from the lists in `opnames` and `modulespec`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from .codec import CodecError, decode, encode, encode_structure
from .modulespec import ModuleSpec, attach, build, container, spec_of
from .opnames import name_of, target_of
from .tidy import tidy

# Module names may be any text (keys of ModuleDict) but for what would end the string they are written into.
_PATH = re.compile(r'[^."\\\s]+(\.[^."\\\s]+)*')


class ForeignTarget(CodecError):
    """A document that calls an operation which no program may call."""


def to_document(graph_module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document of a graph module, and the tensors it names.

    Raises:
        CodecError: Something in it has no JSON form.
    """
    stored, table = _tensor_table(graph_module)
    document = {
        "training": graph_module.training,
        "signature": _signature(graph_module.graph),
        "layers": _layers(graph_module),
        "tensors": table,
        "nodes": [_encode_node(node) for node in graph_module.graph.nodes],
    }
    return document, stored


def from_document(document: Mapping[str, Any], weights: Mapping[str, Tensor]) -> fx.GraphModule:
    """The graph module of a document.

    Raises:
        ForeignTarget: It calls an operation that no program may call.
        CodecError, KeyError, TypeError, ValueError: It is no document of ours.
    """
    root = nn.Module()
    _check_names(document["layers"], _is_path)
    _check_names(document["tensors"], _is_path)
    for path, entry in sorted(document["layers"].items()):
        parent, _, last = path.rpartition(".")
        container(root, parent).add_module(last, build(ModuleSpec(entry["type"], decode(entry["options"]))))
    made: dict[str, Tensor] = {}
    for name, entry in document["tensors"].items():
        parent, _, last = name.rpartition(".")
        key = entry["stored"]
        if key not in made:
            made[key] = _tensor(key, entry, weights)
        attach(container(root, parent), last, made[key])
    unset = [name for name, tensor in [*root.named_parameters(), *root.named_buffers()] if tensor.is_meta]
    if unset:
        raise CodecError(f"{unset[0]} has no value")
    return tidy(fx.GraphModule(root, _graph(document))).train(document["training"])


def _tensor_table(graph_module: fx.GraphModule) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors to store, and for every dotted name which one it is."""
    stored: dict[str, Tensor] = {}
    table: dict[str, dict[str, Any]] = {}
    first: dict[int, str] = {}
    named = [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in named:
        key = first.setdefault(id(tensor), name)
        if key == name:
            stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        table[name] = {
            "stored": key,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "parameter": isinstance(tensor, nn.Parameter),
            "requires_grad": tensor.requires_grad,
        }
    return stored, table


def _tensor(key: str, entry: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Tensor:
    tensor = weights[key]
    if list(tensor.shape) != entry["shape"] or str(tensor.dtype) != f"torch.{entry['dtype']}":
        raise CodecError(f"{key} has another shape or type than the graph says")
    return nn.Parameter(tensor, requires_grad=entry["requires_grad"]) if entry["parameter"] else tensor


def _signature(graph: fx.Graph) -> dict[str, Any]:
    codegen = graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen):
        raise CodecError("the graph has lost its signature")
    info = codegen.pytree_info
    inputs, outputs = (_unflatten(spec) for spec in (info.in_spec, info.out_spec))
    return {"names": list(info.orig_args), "inputs": encode_structure(inputs), "outputs": encode_structure(outputs)}


def _unflatten(spec: pytree.TreeSpec | None) -> Any:
    if spec is None:
        raise CodecError("the graph has lost its signature")
    return pytree.tree_unflatten([0] * spec.num_leaves, spec)


def _layers(graph_module: fx.GraphModule) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in graph_module.graph.find_nodes(op="call_module"):
        spec = spec_of(graph_module.get_submodule(str(node.target)))
        if spec is None:
            raise CodecError(f"{node.target} is of a type that no program may hold")
        found[str(node.target)] = {"type": spec.type, "options": encode(dict(spec.options))}
    return dict(sorted(found.items()))


def _encode_node(node: fx.Node) -> dict[str, Any]:
    target = name_of(node.target) if node.op == "call_function" else str(node.target)
    if target is None or node.op == "call_method":
        raise CodecError(f"{node.target} is an operation that no program may call")
    entry = {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": encode(node.args),
        "kwargs": encode(node.kwargs),
    }
    return entry | {key: node.meta[key] for key in ("path", "source") if key in node.meta}


def _graph(document: Mapping[str, Any]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for entry in document["nodes"]:
        args, kwargs = decode(entry["args"], nodes), decode(entry["kwargs"], nodes)
        _check_names([entry["name"], *kwargs], str.isidentifier)
        node = graph.create_node(entry["op"], _target(entry, document), args, kwargs, name=entry["name"])
        node.meta.update({key: entry[key] for key in ("path", "source") if key in entry})
        nodes[entry["name"]] = node
    signature = document["signature"]
    inputs, outputs = decode(signature["inputs"]), decode(signature["outputs"])
    _check_names([*signature["names"], *inputs[1]], str.isidentifier)
    info = _PyTreeInfo(signature["names"], pytree.tree_structure(inputs), pytree.tree_structure(outputs))
    graph.set_codegen(_PyTreeCodeGen(info))
    return graph


def _target(entry: Mapping[str, Any], document: Mapping[str, Any]) -> Any:
    """The checked target of a node."""
    op, target = entry["op"], entry["target"]
    if op == "call_function":
        function = target_of(target)
        if function is None:
            raise ForeignTarget(
                f"node {entry['name']!r} calls {target!r}, which is not on the list of known operations"
            )
        return function
    allowed = {
        "placeholder": str.isidentifier,
        "output": "output".__eq__,
        "call_module": document["layers"].__contains__,
        "get_attr": document["tensors"].__contains__,
    }
    if op not in allowed:
        raise ForeignTarget(f"node {entry['name']!r} is a {op!r}, which no program may hold")
    _check_names([target], allowed[op])
    return target


def _is_path(name: str) -> bool:
    return _PATH.fullmatch(name) is not None


def _check_names(names: Iterable[Any], good: Callable[[str], bool]) -> None:
    for name in names:
        if not isinstance(name, str) or not good(name):
            raise CodecError(f"{name!r} is no name")
