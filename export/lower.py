"""Lowering of a program to ONNX: node by node, with the program's own names, in the dialect of a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ..errors import UnsupportedError
from ..passes.opnames import is_assertion
from ..passes.program import Program
from . import lower_ops_conv, lower_ops_masks, lower_ops_math, lower_ops_pool, lower_ops_shape, lower_quant
from .check_onnx import check_onnx
from .lower_context import (
    Fallback,
    Lowering,
    ModuleLowering,
    NoLowering,
    OpLowering,
    Value,
    arguments,
    array_of,
    function_name,
    numpy_dtype,
)
from .lower_fallback import lower_by_exporter
from .node_facts import TensorFact, gather_facts
from .onnx_builder import ValueSpec
from .targets import Target
from .tensorrt.half import to_half

OPS: Mapping[str, OpLowering] = {
    **lower_ops_conv.OPS,
    **lower_ops_pool.OPS,
    **lower_ops_math.OPS,
    **lower_ops_shape.OPS,
    **lower_ops_masks.OPS,
}
"""Lowering of function calls, by the name of the ATen operation (without overload) or of the Python operator."""

MODULES: Mapping[type[nn.Module], ModuleLowering] = {**lower_ops_conv.MODULES, **lower_quant.MODULES}
"""Lowering of module calls, by class; a subclass takes that of its nearest base."""


@dataclass(frozen=True)
class Lowered:
    """Result of a lowering.

    Attributes:
        model: The ONNX model, checked.
        fallbacks: Nodes that took the torch exporter's translation.
        rewrites: Subgraphs that were lowered to an equal but faster form, by node.
        half: ONNX nodes that compute in FP16.
    """

    model: onnx.ModelProto
    fallbacks: tuple[Fallback, ...]
    rewrites: tuple[str, ...] = ()
    half: tuple[str, ...] = ()


def lower(program: Program, target: Target) -> onnx.ModelProto:
    """Lowers a program to ONNX in evaluation mode.

    Args:
        program: The network; fake-quantised parts become integer weights with QuantizeLinear/DequantizeLinear.
        target: Where it will run: decides the operator set.

    Returns:
        A checked model. Nodes and initialisers are called after fx nodes and modules; axis 0 is "batch" unless static.

    Raises:
        UnsupportedError: An operation has no translation.
    """
    return lower_program(program, target).model


def lower_program(program: Program, target: Target) -> Lowered:
    """`lower`, with a report of what was done differently."""
    ctx = Lowering(program, gather_facts(program), target.opset, target.dialect)
    inputs = _declare_inputs(ctx)
    names = output_names(program)
    result = next(node for node in program.graph.nodes if node.op == "output")
    needed = _needed(result)
    for node in program.graph.nodes:
        if node in needed and node.op not in ("placeholder", "output"):
            ctx.env[node] = _lower_node(ctx, node)
    leaves = _output_leaves(program)
    outputs = [(_output_value(ctx, leaf), _spec(ctx, name, leaf)) for name, leaf in zip(names, leaves, strict=True)]
    model = ctx.builder.finish(inputs, outputs, opset=target.opset, graph_name="main")
    half: tuple[str, ...] = ()
    if target.half:
        converted = to_half(model)
        model, half = converted.model, converted.half
    check_onnx(model)
    kept = {node.name for node in model.graph.node}
    rewrites = tuple(text for name, text in ctx.rewrites.items() if name in kept)
    return Lowered(model, tuple(ctx.fallbacks), rewrites, half)


def output_names(program: Program) -> tuple[str, ...]:
    """Names of the ONNX outputs, in the order of the program's flattened outputs.

    A single tensor is "output"; others are called after their place: `logits`, `aux_0`, `output_1`.
    """
    names = []
    for path, _ in _output_paths(program):
        keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
        name = "_".join(keys)
        names.append(name if keys and not keys[0].isdigit() else f"output_{name}" if name else "output")
    inputs = {node.name for node in program.graph.nodes if node.op == "placeholder"}
    return tuple(f"output_{name}" if name in inputs or names.count(name) > 1 else name for name in names)


def _output_paths(program: Program) -> list[tuple[Any, fx.Node]]:
    """Key path and fx node of every output that is not a constant."""
    result = next(node for node in program.graph.nodes if node.op == "output")
    flat = pytree.tree_leaves(result.args[0])
    structure = program.graph.process_outputs(flat if len(flat) != 1 or not _bare(program) else flat[0])
    paths, _ = pytree.tree_flatten_with_path(structure)
    return [(path, leaf) for path, leaf in paths if isinstance(leaf, fx.Node)]


def _bare(program: Program) -> bool:
    """Whether the graph returns its result itself, not a list of leaves to be put in a structure."""
    return getattr(program.graph._codegen, "pytree_info", None) is None


def _output_leaves(program: Program) -> list[fx.Node]:
    return [leaf for _, leaf in _output_paths(program)]


def _declare_inputs(ctx: Lowering) -> list[ValueSpec]:
    specs = []
    for node in ctx.facts.inputs:
        if isinstance(ctx.facts.nodes[node], TensorFact):
            ctx.env[node] = node.name
            specs.append(_spec(ctx, node.name, node))
    return specs


def _spec(ctx: Lowering, name: str, node: fx.Node) -> ValueSpec:
    fact = ctx.facts.nodes[node]
    if not isinstance(fact, TensorFact):
        return ValueSpec(name, np.dtype(np.int64), (1,))
    shape = tuple(
        fact.shape[axis]
        if not fact.dynamic(axis)
        else "batch"
        if fact.pair(axis) == ctx.facts.batch
        else f"{name}_{axis}"
        for axis in range(fact.rank)
    )
    return ValueSpec(name, numpy_dtype(fact.dtype), shape)


def _output_value(ctx: Lowering, node: fx.Node) -> str:
    value = ctx.env.get(node)
    if not isinstance(value, str):
        raise _unsupported(ctx, node, "the output is not a tensor")
    return value


def _needed(result: fx.Node) -> set[fx.Node]:
    """What the output depends on."""
    needed: set[fx.Node] = set()
    pending = [result]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed


def _lower_node(ctx: Lowering, node: fx.Node) -> Value:
    """One node: by our own lowering, else by the exporter.

    Raises:
        UnsupportedError: By neither.
    """
    if node.op == "get_attr":
        return ctx.parameter(str(node.target), _attribute(ctx.program, str(node.target)))
    if is_assertion(node.target):
        return None
    mark = ctx.builder.mark()
    try:
        return _constant(ctx, node) or _own_lowering(ctx, node)
    except NoLowering as declined:
        ctx.builder.rollback(mark)
        reason = str(declined)
    try:
        value = lower_by_exporter(ctx, node)
    except NoLowering as declined:
        raise _unsupported(ctx, node, f"{reason}; {declined}") from declined
    ctx.fallbacks.append(Fallback(node.name, operation_of(ctx.program, node), reason))
    return value


def _constant(ctx: Lowering, node: fx.Node) -> str | None:
    """The result of a function without inputs (`zeros`, `eye`, `arange`, ...) as an initialiser, else None.

    Raises:
        NoLowering: The function draws random numbers.
    """
    if node.op != "call_function" or node.all_input_nodes or not isinstance(ctx.facts.nodes.get(node), TensorFact):
        return None
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise NoLowering("it draws random numbers")
    function: Any = node.target
    return ctx.builder.constant(node.name, array_of(function(*node.args, **{**node.kwargs, **_on_host(node)})))


def _on_host(node: fx.Node) -> dict[str, Any]:
    return {"device": "cpu"} if "device" in node.kwargs else {}


def _own_lowering(ctx: Lowering, node: fx.Node) -> Value:
    if node.op == "call_module":
        module = ctx.module(node)
        for base in type(module).__mro__:
            if base in MODULES:
                return MODULES[base](ctx, node, module)
        raise NoLowering(f"no lowering of ours for modules of type {type(module).__name__}")
    name = function_name(node.target)
    if name not in OPS:
        raise NoLowering("no lowering of ours")
    return OPS[name](ctx, node, arguments(node))


def operation_of(program: Program, node: fx.Node) -> str:
    """What a node computes, as people know it."""
    if node.op == "call_module":
        return type(program.graph_module.get_submodule(str(node.target))).__name__
    return str(node.target)


def _attribute(program: Program, name: str) -> Any:
    holder, _, last = name.rpartition(".")
    return getattr(program.graph_module.get_submodule(holder) if holder else program.graph_module, last)


def _unsupported(ctx: Lowering, node: fx.Node, why: str) -> UnsupportedError:
    path = node.target if node.op == "call_module" else node.meta.get("path") or node.name
    source = node.meta.get("source")
    return UnsupportedError(
        f"{operation_of(ctx.program, node)} has no ONNX translation",
        where=f"{path}, {source}" if source else str(path),
        why=why,
        hint="replace it in the model by operations that ONNX has",
    )
