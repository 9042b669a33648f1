"""The torch exporter's translation of one node, for operations that have no lowering of ours.

A graph module with this node alone goes through `torch.onnx.export`; its nodes and initialisers are inlined under the
fx node's name. Everything around the node keeps our lowering.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn

from ..passes.quiet import quiet
from .lower_context import Lowering, NoLowering, Value
from .node_facts import TensorFact

_EXPORTER_OPSETS = (18, 23)
"""Operator sets that the exporter writes."""


def lower_by_exporter(ctx: Lowering, node: fx.Node) -> Value:
    """Lowers one node by the torch exporter.

    Raises:
        NoLowering: The exporter does not take the node either.
    """
    tensors = [n for n in node.all_input_nodes if isinstance(ctx.facts.nodes.get(n), TensorFact)]
    if len(tensors) != len(node.all_input_nodes):
        raise NoLowering("it takes symbolic sizes or several results as an input")
    try:
        model = _export(ctx, node, tensors)
    except Exception as error:
        raise NoLowering(f"the torch exporter failed: {_first_line(error)}") from error
    if {opset.domain for opset in model.opset_import} - {""} or model.functions:
        raise NoLowering("the torch exporter answered with operators outside the ONNX standard")
    return _inline(ctx, node, model, [ctx.value(n) for n in tensors])


def _export(ctx: Lowering, node: fx.Node, tensors: list[fx.Node]) -> onnx.ModelProto:
    single = _single_node_module(ctx, node, tensors)
    facts = [ctx.fact(n) for n in tensors]
    examples = tuple(torch.zeros(fact.shape, dtype=fact.dtype) for fact in facts)
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis in range(fact.rank) if fact.dynamic(axis)} for fact in facts
    )
    low, high = _EXPORTER_OPSETS
    if not low <= ctx.opset <= high:
        raise NoLowering(f"the exporter does not write opset {ctx.opset}")
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            single.eval(),
            examples,
            dynamo=True,
            opset_version=ctx.opset,
            dynamic_shapes=dynamic if any(dynamic) else None,
            verbose=False,
        )
    if program is None:
        raise NoLowering("the torch exporter returned nothing")
    return program.model_proto


def _single_node_module(ctx: Lowering, node: fx.Node, tensors: list[fx.Node]) -> fx.GraphModule:
    graph, root = fx.Graph(), nn.Module()
    env = {n: graph.placeholder(f"x{i}") for i, n in enumerate(tensors)}
    copied = graph.node_copy(node, lambda n: env[n])
    copied.meta.clear()
    if node.op == "call_module":
        root.add_module("layer", ctx.module(node))
        copied.target = "layer"
    fact = ctx.facts.nodes[node]
    if isinstance(fact, TensorFact):
        graph.output((copied,))
    elif isinstance(fact, tuple) and all(isinstance(f, TensorFact) for f in fact):
        graph.output(tuple(graph.call_function(_pick, (copied, i)) for i in range(len(fact))))
    else:
        raise NoLowering("it yields something other than tensors")
    return fx.GraphModule(root, graph)


def _pick(values: Any, position: int) -> Tensor:
    return values[position]


def _inline(ctx: Lowering, node: fx.Node, model: onnx.ModelProto, inputs: list[str]) -> Value:
    graph = model.graph
    names = dict(zip((i.name for i in graph.input), inputs, strict=True))
    names[""] = ""
    for tensor in graph.initializer:
        names[tensor.name] = ctx.builder.constant(f"{node.name}/{tensor.name}", numpy_helper.to_array(tensor))
    for inner in graph.node:
        if any(
            attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for attribute in inner.attribute
        ):
            raise NoLowering("the exporter's translation has control flow")
        for output in inner.output:
            names.setdefault(output, f"{node.name}/{output}")
    for position, inner in enumerate(graph.node):
        copied = onnx.NodeProto()
        copied.CopyFrom(inner)
        copied.name = f"{node.name}/{inner.op_type}{position}"
        copied.ClearField("metadata_props")
        copied.ClearField("doc_string")
        copied.input[:] = [names[name] for name in inner.input]
        copied.output[:] = [names[name] for name in inner.output]
        ctx.builder.append(copied)
    outputs = tuple(names[output.name] for output in graph.output)
    return outputs[0] if isinstance(ctx.facts.nodes[node], TensorFact) else outputs


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
