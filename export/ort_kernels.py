"""Which layers run as integer kernels, read back from the graph that onnxruntime makes of a model."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from .ort_session import open_session

INTEGER_CONVS = frozenset({"QLinearConv", "ConvInteger", "QLinearConvTranspose"})
FLOAT_CONVS = frozenset({"Conv", "FusedConv", "NhwcFusedConv", "NhwcConv", "ConvTranspose"})
INTEGER_MATMULS = frozenset(
    {
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QAttention",
    }
)
FLOAT_MATMULS = frozenset({"Gemm", "MatMul", "FusedMatMul", "FusedGemm", "Attention", "MultiHeadAttention"})
_DECORATION = re.compile(
    r"(_token_\d+|_nchwc|_nhwc|/ConvActivationFusion/?|/MatMulAddFusion/?|/GemmActivationFusion/?)+$"
)
"""What the runtime appends to the names of nodes that it rewrites."""


@dataclass(frozen=True)
class FloatKernel:
    """A convolution or matrix product that runs in float.

    Attributes:
        name: Node of the exported model, where it can be told.
        op: The runtime's operator.
        reason: Why it is not an integer kernel.
    """

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class KernelReport:
    """Integer and float kernels of an optimised graph.

    Attributes:
        integer_convs: Convolutions that run as integer kernels.
        float_convs: Convolutions that run in float.
        integer_matmuls: Matrix products that run as integer kernels.
        float_matmuls: Matrix products that run in float.
        float_nodes: The float ones by name, with the reason.
        leftover_quantize: QuantizeLinear nodes left in the graph (one for each float input is needed).
        leftover_dequantize: DequantizeLinear nodes left in the graph.
        operators: Number of nodes by operator.
    """

    integer_convs: int
    float_convs: int
    integer_matmuls: int
    float_matmuls: int
    float_nodes: tuple[FloatKernel, ...]
    leftover_quantize: int
    leftover_dequantize: int
    operators: Mapping[str, int]

    @property
    def conv_share(self) -> float:
        """Share of convolutions that are integer; 1.0 if there are none."""
        return _share(self.integer_convs, self.float_convs)

    @property
    def share(self) -> float:
        """Share of convolutions and matrix products that are integer; 1.0 if there are none."""
        return _share(self.integer_convs + self.integer_matmuls, self.float_convs + self.float_matmuls)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `integer` and `total` count convolutions."""
        total = self.integer_convs + self.float_convs
        shares = {"share": self.share, "conv_share": self.conv_share, "integer": self.integer_convs, "total": total}
        return {**asdict(self), **shares}


def _share(integer: int, float_: int) -> float:
    return integer / (integer + float_) if integer + float_ else 1.0


def kernel_report(path: Path | str) -> KernelReport:
    """Has onnxruntime optimise a model and counts its kernels.

    Args:
        path: ONNX file.

    Raises:
        EnvironmentLacksError: onnxruntime is not installed.
    """
    source = onnx.load(str(path), load_external_data=False)
    with tempfile.TemporaryDirectory() as folder:
        optimised_path = Path(folder) / "optimised.onnx"
        open_session(path, optimised=optimised_path)
        optimised = onnx.load(str(optimised_path))
    return count_kernels(optimised, source)


def count_kernels(optimised: onnx.ModelProto, source: onnx.ModelProto) -> KernelReport:
    """Counts the kernels of an optimised graph; the exported model gives the names and the reasons."""
    operators = Counter(node.op_type for node in _nodes(optimised.graph))
    explain = _Explainer(source.graph)
    float_nodes = tuple(
        explain(node) for node in _nodes(optimised.graph) if node.op_type in FLOAT_CONVS | FLOAT_MATMULS
    )
    return KernelReport(
        integer_convs=sum(operators[k] for k in INTEGER_CONVS),
        float_convs=sum(operators[k] for k in FLOAT_CONVS),
        integer_matmuls=sum(operators[k] for k in INTEGER_MATMULS),
        float_matmuls=sum(operators[k] for k in FLOAT_MATMULS),
        float_nodes=float_nodes,
        leftover_quantize=operators["QuantizeLinear"],
        leftover_dequantize=operators["DequantizeLinear"],
        operators=dict(sorted(operators.items())),
    )


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of subgraphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


class _Explainer:
    """Finds the exported node behind a float kernel, and says why it was not fused."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.by_name = {node.name: node for node in graph.node}
        self.producer = {output: node for node in graph.node for output in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.outputs = {output.name for output in graph.output}

    def __call__(self, kernel: onnx.NodeProto) -> FloatKernel:
        node = self._origin(kernel)
        if node is None:
            return FloatKernel(kernel.name, kernel.op_type, "not told by the runtime")
        return FloatKernel(node.name, kernel.op_type, self._reason(node))

    def _origin(self, kernel: onnx.NodeProto) -> onnx.NodeProto | None:
        """The exported layer; a kernel fused with its activation carries the name of the activation."""
        node = self.by_name.get(_DECORATION.sub("", kernel.name)) or self.producer.get(kernel.output[0])
        while node is not None and node.op_type not in FLOAT_CONVS | FLOAT_MATMULS:
            node = next((self.producer[name] for name in node.input if name in self.producer), None)
        return node

    def _reason(self, node: onnx.NodeProto) -> str:
        if len(node.input) < 2:
            return "not told by the runtime"
        weight, activation = self._quantizer(node.input[1]), self._quantizer(node.input[0])
        if weight is None:
            return "its weights are not quantised"
        if activation is None:
            return "its input is not quantised"
        convolution = "Conv" in node.op_type
        if convolution and not self._requantised(node.output[0]):
            return "its output is not quantised, and the runtime has no convolution from integers to floats"
        if len(node.input) > 2 and not convolution and self._quantizer(node.input[2]) is None:
            return "its bias is not an integer"
        return "the runtime has no integer kernel for this form"

    def _quantizer(self, value: str) -> onnx.NodeProto | None:
        node = self.producer.get(value)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def _requantised(self, value: str) -> bool:
        """Whether a value is read by a quantiser only, an activation in between allowed."""
        readers = self.consumers.get(value, [])
        if not readers or value in self.outputs:
            return False
        if all(reader.op_type == "QuantizeLinear" for reader in readers):
            return True
        activation = len(readers) == 1 and readers[0].op_type in ("Relu", "Clip", "LeakyRelu", "Sigmoid")
        return activation and self._requantised(readers[0].output[0])
