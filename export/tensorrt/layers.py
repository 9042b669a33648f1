"""What an engine really computes: its layers and their types, and which layers of the network are not integer.

Layers come from the engine inspector (JSON), which needs the engine on a device, or from the list that the builder
writes into its detailed log, which TensorRT-RTX does without one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx

from ..ort_kernels import FloatKernel, KernelReport
from .half import INTEGER_LAYERS

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>.*?), Inputs: (?P<inputs>.*), Outputs: (?P<outputs>.*)$")
_TYPE = re.compile(r"Datatype: (\w+)")
_UNIT = re.compile(r"_myl\d+_\d+$")
_PART = re.compile(r"_U\d+$")
_FORMATS = (("Int8", "Int8"), ("FP16", "Half"), ("Half", "Half"), ("FP32", "Float"), ("Float", "Float"))


@dataclass(frozen=True)
class Layer:
    """One layer of an engine.

    Attributes:
        name: Its name in the engine.
        kind: What computes it.
        inputs: Types of its inputs and constants, such as "Int8", "Half", "Float".
        outputs: Types of its outputs.
        nodes: ONNX nodes that it computes, as far as its name says.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class LayerPrecision:
    """What became of one convolution or matrix product of the network.

    Attributes:
        node: Name of the ONNX node.
        op: Its operator.
        integer: It computes on INT8.
        reason: Why it does not; empty if it does.
        layer: The engine's layer; empty if no layer names it (it was fused with others).
    """

    node: str
    op: str
    integer: bool
    reason: str
    layer: str


@dataclass(frozen=True)
class PrecisionReport:
    """Which convolutions and matrix products of a network are integer in its engine.

    Attributes:
        source: `inspector`, `build log`, or `graph` (neither is there: what the ONNX file asks for).
        entries: One for each convolution and matrix product.
        layers: Number of layers of the engine by kind.
    """

    source: str
    entries: tuple[LayerPrecision, ...]
    layers: Mapping[str, int]

    @property
    def float_entries(self) -> tuple[LayerPrecision, ...]:
        """Those that are not integer."""
        return tuple(entry for entry in self.entries if not entry.integer)

    def kernels(self) -> KernelReport:
        """The same in the form in which kernels of other runtimes are reported."""
        convs, products = ([e for e in self.entries if ("Conv" in e.op) is is_conv] for is_conv in (True, False))
        return KernelReport(
            integer_convs=sum(e.integer for e in convs),
            float_convs=sum(not e.integer for e in convs),
            integer_matmuls=sum(e.integer for e in products),
            float_matmuls=sum(not e.integer for e in products),
            float_nodes=tuple(FloatKernel(e.node, e.op, e.reason) for e in self.float_entries),
            leftover_quantize=0,
            leftover_dequantize=0,
            operators=self.layers,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        counts = {"integer": sum(e.integer for e in self.entries), "total": len(self.entries)}
        return {
            "source": self.source,
            **counts,
            "layers": dict(self.layers),
            "entries": [asdict(e) for e in self.entries],
        }


def report_from_json(data: Mapping[str, Any]) -> PrecisionReport:
    """Reads what `PrecisionReport.to_json` wrote."""
    return PrecisionReport(data["source"], tuple(LayerPrecision(**e) for e in data["entries"]), data["layers"])


def layers_of_log(text: str) -> tuple[Layer, ...]:
    """Reads the layers from the builder's detailed log; empty if it lists none."""
    found = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is not None:
            inputs, outputs = (tuple(_TYPE.findall(match[part])) for part in ("inputs", "outputs"))
            found.append(Layer(match["name"], match["kind"], inputs, outputs, _nodes_of_name(match["name"])))
    return tuple(found)


def layers_of_inspector(text: str) -> tuple[Layer, ...]:
    """Reads the inspector's JSON, of an engine built with detailed profiling."""
    found = []
    for entry in json.loads(text).get("Layers", []):
        if isinstance(entry, str):
            found.append(Layer(entry, "", (), (), _nodes_of_name(entry)))
            continue
        name = str(entry.get("Name", ""))
        inputs, outputs = (tuple(_type_of(value) for value in entry.get(key, [])) for key in ("Inputs", "Outputs"))
        metadata = str(entry.get("Metadata", ""))
        nodes = tuple(part.removeprefix("[ONNX Layer: ").rstrip("]") for part in metadata.split("\x1e") if part)
        found.append(Layer(name, str(entry.get("LayerType", "")), inputs, outputs, nodes or _nodes_of_name(name)))
    return tuple(found)


def precision_report(model: onnx.ModelProto, layers: Sequence[Layer], source: str) -> PrecisionReport:
    """Compares what a network asks for with what its engine does.

    Args:
        model: The network.
        layers: Of its engine; if there are none, the network's own types are reported.
        source: Where the layers come from.
    """
    by_node = {node: layer for layer in layers for node in layer.nodes}
    producer = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    entries = []
    for node in model.graph.node:
        if node.op_type not in INTEGER_LAYERS:
            continue
        layer, reason = by_node.get(node.name), float_reason(node, producer, constants)
        if not reason and layer is not None and "Int8" not in layer.inputs[:1]:
            reason = f"the builder chose a kernel on {' and '.join(sorted(set(layer.inputs)))}"
        entries.append(LayerPrecision(node.name, node.op_type, not reason, reason, layer.name if layer else ""))
    kinds: dict[str, int] = {}
    for layer in layers:
        kinds[layer.kind] = kinds.get(layer.kind, 0) + 1
    return PrecisionReport(source if layers else "graph", tuple(entries), kinds)


def float_reason(
    node: onnx.NodeProto, producer: Mapping[str, onnx.NodeProto], constants: Mapping[str, onnx.TensorProto]
) -> str:
    """Why a convolution or matrix product has to compute on floats; empty if it need not.

    Args:
        node: The layer.
        producer: Nodes by the values that they make.
        constants: Initialisers by name.
    """
    x, weight = (producer.get(name) for name in node.input[:2])
    if weight is None or weight.op_type != "DequantizeLinear":
        computed = node.input[1] not in constants
        return (
            "both its operands are computed; the scheme leaves those float"
            if computed
            else "its weights are not quantised"
        )
    if x is None or x.op_type != "DequantizeLinear":
        return "its input is not quantised"
    if node.op_type == "ConvTranspose":
        return "transposed convolutions have no integer kernel"
    if _count(x, constants) > 1:
        return "its input has a scale for each channel: an integer kernel takes one for the whole tensor"
    if _count(weight, constants) > 1 and _attribute(weight, "axis", 1) != output_axis(node, constants, weight):
        return "its weight scales do not follow the output channels"
    return ""


def output_axis(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], weight: onnx.NodeProto) -> int:
    """Axis of a layer's weight along which its output channels lie."""
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul":
        held = constants.get(weight.input[0])
        return len(held.dims) - 1 if held is not None else 1
    return 0


def _count(dequantize: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> int:
    """Number of scales of a DequantizeLinear."""
    scale = constants.get(dequantize.input[1])
    return int(np.prod(scale.dims)) if scale is not None else 1


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _nodes_of_name(name: str) -> tuple[str, ...]:
    """The ONNX nodes in the name of a compiled layer, such as `b_0_v/matmul_U48+b_0_k/matmul_U51_myl0_2`."""
    return tuple(_PART.sub("", part.strip()) for part in re.split(r" ?\+ ?", _UNIT.sub("", name)))


def _type_of(value: Any) -> str:
    """Type of a tensor in the inspector's JSON, from its format such as "Row major Int8 format"."""
    text = str(value.get("Format/Datatype", value.get("Datatype", ""))) if isinstance(value, dict) else ""
    return next((name for word, name in _FORMATS if word in text), text)
