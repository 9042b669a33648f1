"""Whether TensorRT will take a network, said before its parser is asked: which node, which module, and what to do.

The rules are those of the parser and builder, tested against them, and three more. The parser takes an unsigned grid
and computes on a signed one, takes an operator of a foreign domain for the standard one of that name, and crashes
(TensorRT-RTX 1.7) on a scale that is not a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper, shape_inference

from ...errors import UnsupportedError
from .half import INTEGER_LAYERS
from .layers import float_reason
from .operators import FLOAT_ONLY, SUPPORTED
from .sparsity import two_of_four

ALIGNMENT = 16
"""Channels of integer layers: tensor cores read 16 bytes at a time, and what is missing is padded."""

_TYPES = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL"})
_FIX_GRID = "quantise for the target tensorrt: signed integers, zero point 0"


@dataclass(frozen=True)
class Finding:
    """Something about a network that TensorRT does not take, or takes badly.

    Attributes:
        rule: Which rule it breaks.
        node: ONNX node.
        path: Module that the node comes from.
        reason: What is wrong.
        fix: What to do about it.
        illegal: The network cannot be built; otherwise it is slower than it could be.
    """

    rule: str
    node: str
    path: str
    reason: str
    fix: str
    illegal: bool = True

    @property
    def where(self) -> str:
        """Node and module."""
        return ", ".join(part for part in (f"node {self.node}" if self.node else "", self.path) if part)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Network:
    """A model with the look-ups that rules need.

    Attributes:
        model: The network.
        capabilities: Compute capabilities that it is built for.
        sparse: 2:4 sparse kernels are asked for.
        paths: Module paths by node name.
    """

    model: onnx.ModelProto
    capabilities: tuple[str, ...] = ()
    sparse: bool = False
    paths: Mapping[str, str] | None = None

    @cached_property
    def nodes(self) -> tuple[onnx.NodeProto, ...]:
        """Nodes of the main graph and of graphs inside nodes."""
        return tuple(_all_nodes(self.model.graph))

    @cached_property
    def constants(self) -> dict[str, TensorProto]:
        """Initialisers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def producer(self) -> dict[str, onnx.NodeProto]:
        """Nodes by the values that they make."""
        return {name: node for node in self.nodes for name in node.output}

    @cached_property
    def types(self) -> dict[str, int]:
        """ONNX element types by value, as far as they can be inferred."""
        graph = shape_inference.infer_shapes(self.model).graph
        found = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.output, *graph.value_info)}
        return found | {tensor.name: tensor.data_type for tensor in graph.initializer}

    def path(self, node: onnx.NodeProto) -> str:
        """The module of a node: as told, else as the names of its parameters say."""
        told = (self.paths or {}).get(node.name) or (self.paths or {}).get(node.name.partition("/")[0])
        if told:
            return told
        names = [name for name in node.input if name in self.constants]
        names += [made.input[0] for name in node.input if (made := self.producer.get(name)) is not None and made.input]
        dotted = [name.rpartition(".")[0] for name in names if name in self.constants and "." in name]
        return dotted[0].removesuffix(".weight") if dotted else ""

    def finding(
        self, rule: str, node: onnx.NodeProto | None, reason: str, fix: str, *, illegal: bool = True
    ) -> Finding:
        """A finding about a node."""
        return Finding(rule, node.name if node else "", self.path(node) if node else "", reason, fix, illegal)


def check_legality(
    model: onnx.ModelProto,
    *,
    capabilities: Sequence[str] = (),
    sparse: bool = False,
    paths: Mapping[str, str] | None = None,
) -> tuple[Finding, ...]:
    """Everything about a network that TensorRT would reject or run badly; nothing is built.

    Args:
        model: The network.
        capabilities: Compute capabilities that it is to be built for.
        sparse: 2:4 sparse kernels are asked for.
        paths: Module paths by ONNX node name.
    """
    network = Network(model, tuple(capabilities), sparse, paths)
    return tuple(finding for rule in RULES for finding in rule(network))


def require_legal(
    model: onnx.ModelProto,
    *,
    capabilities: Sequence[str] = (),
    sparse: bool = False,
    paths: Mapping[str, str] | None = None,
) -> tuple[Finding, ...]:
    """`check_legality`, as a condition.

    Returns:
        What is legal but slow.

    Raises:
        UnsupportedError: Something is illegal; names node, module and fix of the first, and counts the others.
    """
    findings = check_legality(model, capabilities=capabilities, sparse=sparse, paths=paths)
    illegal = [finding for finding in findings if finding.illegal]
    if illegal:
        first, others = illegal[0], len(illegal) - 1
        more = (
            f" (and {others} more: {', '.join(f.node for f in illegal[1:4])}{', …' if others > 3 else ''})"
            if others
            else ""
        )
        raise UnsupportedError(
            "TensorRT does not take this network", where=first.where, why=first.reason + more, hint=first.fix
        )
    return findings


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


# Rules: each looks at one thing.


def something_to_compute(network: Network) -> Iterator[Finding]:
    """A network has an output."""
    if not network.model.graph.output:
        yield network.finding("output", None, "the network has no output", "export a program that returns a tensor")


def known_operators(network: Network) -> Iterator[Finding]:
    """The parser imports every operator."""
    for node in network.nodes:
        if node.domain not in ("", "ai.onnx"):
            reason = f"{node.op_type} belongs to the domain {node.domain}, which the parser ignores"
            yield network.finding("operator", node, reason, "express it by operators of ONNX itself")
        elif node.op_type not in SUPPORTED:
            fix = "replace it in the model, or quantise for the target tensorrt"
            yield network.finding("operator", node, f"the parser has no importer for {node.op_type}", fix)


def known_types(network: Network) -> Iterator[Finding]:
    """Values have types that the library computes with."""
    for name, kind in network.types.items():
        text = TensorProto.DataType.Name(kind)
        if text in _TYPES or text == "UNDEFINED":
            continue
        node = network.producer.get(name) or next((n for n in network.nodes if name in n.input), None)
        yield network.finding(
            "type", node, f"{name} has type {text.lower()}", "convert it to float32, int64 or bool in the model"
        )


def one_type(network: Network) -> Iterator[Finding]:
    """Operands of one operation have one type: a strongly typed network converts nothing by itself."""
    for node in network.nodes:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            continue
        formal = onnx.defs.get_schema(node.op_type, _opset(network.model)).inputs
        seen: dict[str, tuple[str, int]] = {}
        for position, name in enumerate(node.input):
            parameter = formal[min(position, len(formal) - 1)]
            mixed = position >= len(formal) - 1 and not getattr(formal[-1], "is_homogeneous", True)
            kind = network.types.get(name, 0)
            if not name or not kind or mixed:
                continue
            first, expected = seen.setdefault(parameter.type_str, (name, kind))
            if kind != expected:
                a, b = (TensorProto.DataType.Name(k).lower() for k in (expected, kind))
                yield network.finding(
                    "mixed types", node, f"{first} is {a}, {name} is {b}", "put a Cast in front of one"
                )
                break


def signed_grid(network: Network) -> Iterator[Finding]:
    """Q and DQ have signed 8-bit codes and zero point 0."""
    for node in _quantisers(network):
        kind = _code_type(network, node)
        if kind == TensorProto.INT32:
            fix = "keep the bias float: quantise for the target tensorrt"
            yield network.finding("INT32", node, "it dequantises int32, which TensorRT does not", fix)
        elif kind == TensorProto.UINT8:
            reason = "its codes are unsigned; TensorRT would read them as signed, or reject them"
            yield network.finding("unsigned", node, reason, _FIX_GRID)
        elif kind != TensorProto.INT8:
            name = TensorProto.DataType.Name(kind).lower()
            yield network.finding("code type", node, f"its codes are {name}", _FIX_GRID)
        zero = network.constants.get(node.input[2]) if len(node.input) > 2 else None
        if len(node.input) > 2 and node.input[2] and zero is None:
            yield network.finding("zero point", node, "its zero point is computed", _FIX_GRID)
        elif zero is not None and numpy_helper.to_array(zero).any():
            value = numpy_helper.to_array(zero).ravel()
            yield network.finding(
                "zero point", node, f"its zero point is {int(value[np.flatnonzero(value)[0]])}, not 0", _FIX_GRID
            )


def constant_scale(network: Network) -> Iterator[Finding]:
    """Scales are positive constants."""
    for node in _quantisers(network):
        scale = network.constants.get(node.input[1])
        if scale is None:
            fix = "calibrate: TensorRT has no dynamic quantisation of this form"
            yield network.finding("scale", node, "its scale is computed while the network runs", fix)
            continue
        values = numpy_helper.to_array(scale).astype(np.float64)
        if not (np.isfinite(values).all() and (values > 0).all()):
            worst = values.ravel()[np.flatnonzero(~(np.isfinite(values) & (values > 0)))[0]]
            yield network.finding(
                "scale", node, f"its scale is {worst:g}", "calibrate with data that reaches this value"
            )


def turing_products(network: Network) -> Iterator[Finding]:
    """Compute capability 7.5 has no FP32 matrix products; integer ones with FP32 results count."""
    if "7.5" not in network.capabilities:
        return
    for node in network.nodes:
        if node.op_type in ("Gemm", "MatMul", "Einsum") and network.types.get(node.output[0]) == TensorProto.FLOAT:
            fix = "leave 7.5 out of the compute capabilities"
            yield network.finding("Turing", node, "compute capability 7.5 has no matrix product with FP32 results", fix)


def turing_integers(network: Network) -> Iterator[Finding]:
    """Compute capability 7.5 has no integer kernels in TensorRT-RTX, and an engine has one code for its whole list."""
    if "7.5" not in network.capabilities:
        return
    layers = [
        node
        for node in network.nodes
        if node.op_type in INTEGER_LAYERS and not float_reason(node, network.producer, network.constants)
    ]
    if layers:
        others = [capability for capability in network.capabilities if capability != "7.5"]
        reason = f"compute capability 7.5 has no integer kernels: all {len(layers)} integer layers compute on floats"
        reason += f", and on {', '.join(others)} as well, for one code serves the whole list" if others else ""
        fix = "leave 7.5 out, or build an engine for it alone"
        yield network.finding("Turing", layers[0], reason, fix, illegal=False)


def sparse_pattern(network: Network) -> Iterator[Finding]:
    """If sparse kernels are asked for, weights keep the 2:4 pattern."""
    if not network.sparse:
        return
    layers = [(node, weight) for node in network.nodes if (weight := _weight(network, node)) is not None]
    broken = [(node, why) for node, weight in layers if (why := two_of_four(weight, _channel_axis(node)))]
    for node, why in broken:
        # Builders take dense weights all the same; only a network without any sparse weight is a mistake.
        yield network.finding(
            "2:4", node, why, "secateur sparsify with pattern 2:4", illegal=len(broken) == len(layers)
        )


def integer_kernels(network: Network) -> Iterator[Finding]:
    """Layers with quantised weights find an integer kernel."""
    for node in network.nodes:
        weight = network.producer.get(node.input[1]) if node.op_type in INTEGER_LAYERS and len(node.input) > 1 else None
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        reason = float_reason(node, network.producer, network.constants)
        if reason:
            fix = "quantise for the target tensorrt, or leave the layer float"
            yield network.finding("float kernel", node, reason, fix, illegal=False)
            continue
        codes = network.constants.get(weight.input[0])
        if node.op_type != "Conv" or codes is None or _groups(node) > 1:
            continue
        for what, width in (("input", codes.dims[1]), ("output", codes.dims[0])):
            if width % ALIGNMENT and width > ALIGNMENT:
                wide = -(-width // ALIGNMENT) * ALIGNMENT
                reason = f"{width} {what} channels cost as much as {wide}"
                yield network.finding("alignment", node, reason, f"plan widths in steps of {ALIGNMENT}", illegal=False)


def useful_quantisers(network: Network) -> Iterator[Finding]:
    """What is quantised is read by something that can make use of integers."""
    readers: dict[str, list[str]] = {}
    for node in network.nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    for node in network.nodes:
        found = readers.get(node.output[0], []) if node.op_type == "DequantizeLinear" else []
        if found and FLOAT_ONLY.issuperset(found):
            reason = f"only {' and '.join(sorted(set(found)))} reads these codes, on floats"
            yield network.finding("float operator", node, reason, "leave its input float", illegal=False)


RULES: tuple[Callable[[Network], Iterator[Finding]], ...] = (
    something_to_compute,
    known_operators,
    known_types,
    signed_grid,
    constant_scale,
    one_type,
    turing_products,
    turing_integers,
    sparse_pattern,
    integer_kernels,
    useful_quantisers,
)
"""Every rule, in the order in which findings are reported."""


def _quantisers(network: Network) -> list[onnx.NodeProto]:
    return [node for node in network.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]


def _code_type(network: Network, node: onnx.NodeProto) -> int:
    """Element type of the codes of a Q or DQ."""
    if len(node.input) > 2 and node.input[2]:
        return network.types.get(node.input[2], TensorProto.UNDEFINED)
    if node.op_type == "DequantizeLinear":
        return network.types.get(node.input[0], TensorProto.UNDEFINED)
    named = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    return named or TensorProto.UINT8  # what ONNX says of a QuantizeLinear without zero point


def _opset(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _weight(network: Network, node: onnx.NodeProto) -> np.ndarray | None:
    """Weight of a layer, or its codes; None if it has none or they are computed."""
    if node.op_type not in INTEGER_LAYERS or len(node.input) < 2:
        return None
    made = network.producer.get(node.input[1])
    name = made.input[0] if made is not None and made.op_type == "DequantizeLinear" else node.input[1]
    held = network.constants.get(name)
    return None if held is None else numpy_helper.to_array(held)


def _channel_axis(node: onnx.NodeProto) -> int:
    """Axis of a layer's weight along which its input channels lie."""
    if node.op_type == "Gemm":
        return 1 if any(a.name == "transB" and a.i for a in node.attribute) else 0
    return {"MatMul": -2, "ConvTranspose": 0}.get(node.op_type, 1)


def _groups(node: onnx.NodeProto) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)
