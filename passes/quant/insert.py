"""Insertion of fake quantisation: makes a float program simulate the integer grids of a target."""

from __future__ import annotations

from torch import Tensor, fx, nn

from ..program import Program
from ..shapes import propagate
from .grid import QuantScheme
from .modules import FakeQuantize, QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear
from .placement import Placement, QuantValue, place

_QUANTIZED = {nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d, nn.Conv3d: QuantConv3d, nn.Linear: QuantLinear}
_HOME = "quantizers"


def insert_fake_quant(program: Program, scheme: QuantScheme) -> Program:
    """Puts a `FakeQuantize` behind every value that the scheme quantises, and quantised weights into layers.

    What stays float, and why, is `place(program, scheme).journal`.

    Args:
        program: With batch norm folded (see `passes.fold`).
        scheme: What the target wants.

    Returns:
        A new program whose quantisers are not calibrated yet.
    """
    program = program.clone(step="insert_fake_quant")
    placement = place(program, scheme)
    _replace_layers(program.graph_module, placement, scheme)
    homes: dict[fx.Node, str] = {}
    for node, value in placement.values.items():
        if value.owner not in homes:
            homes[value.owner] = _add_quantizer(program.graph_module, value, scheme)
        _insert(program.graph, node, value, homes[value.owner])
    program.graph.lint()
    program.graph_module.recompile()
    propagate(program)
    return program


def _replace_layers(graph_module: fx.GraphModule, placement: Placement, scheme: QuantScheme) -> None:
    for path in placement.layers:
        layer = graph_module.get_submodule(path)
        made = _QUANTIZED[type(layer)].from_float(layer, scheme.weight, per_channel=scheme.per_channel)
        graph_module.set_submodule(path, made)


def _add_quantizer(graph_module: fx.GraphModule, value: QuantValue, scheme: QuantScheme) -> str:
    """Adds the quantiser of a value and of those that share its grid; returns its path."""
    non_negative = value.non_negative and scheme.unsigned_zero_after_relu
    quantizer = FakeQuantize(scheme.activation, non_negative=non_negative)
    quantizer.train(graph_module.training)
    path, taken = f"{_HOME}.{value.owner.name}", dict(graph_module.named_modules())
    while path in taken:
        path += "_"
    graph_module.add_submodule(path, quantizer)
    return path


def _insert(graph: fx.Graph, node: fx.Node, value: QuantValue, path: str) -> None:
    """Puts a call of the quantiser at `path` behind `node`, and makes its readers read that."""
    readers = [user for user in node.users if _reads(user, value)]
    with graph.inserting_after(_last_placeholder(node)):
        call = graph.create_node("call_module", path, (node,), name=f"{node.name}_quantized")
    call.meta.update(path=node.meta.get("path", ""), source=node.meta.get("source", ""))
    for user in readers:
        user.replace_input_with(node, call)


def _reads(user: fx.Node, value: QuantValue) -> bool:
    if user.op != "output" and not isinstance(user.meta.get("val"), Tensor | list | tuple):
        return False  # a size
    if user.op == "output":
        return value.readers is None and value.output_reads
    return value.readers is None or user in value.readers


def _last_placeholder(node: fx.Node) -> fx.Node:
    """Where a call on `node` may be put: behind it, and behind the placeholders, which have to come first."""
    if node.op != "placeholder":
        return node
    return [other for other in node.graph.nodes if other.op == "placeholder"][-1]
