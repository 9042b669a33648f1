"""FP16 for everything that has no integer kernel, with casts around it.

A strongly typed network computes in the types that the file names. Q/DQ and what a runtime fuses into an integer kernel
(its bias, a ReLU, a residual addition up to the next Q) stay FP32: that is arithmetic on the accumulator, which costs
nothing, and the scales stay those that training simulated, bit for bit. Scales in FP16 gain nothing: TensorRT-RTX 1.7
converts them back ("Converting conv activation scales to fp32") and its layer list shows the same kernels and types.
Graph inputs and outputs keep their types, so a half network is fed like a float one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

INTEGER_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that run as integer kernels when their first two inputs come from DequantizeLinear."""

_ACCUMULATOR = frozenset(
    {
        *("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Add", "Sub", "Mul"),
        *("MaxPool", "AveragePool", "Concat", "Slice", "Pad", "Split"),
        *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"),
    }
)
"""What stays FP32 between an integer kernel and the next Q: a cast in between would keep the two from being fused."""

_FLOAT_ONLY = frozenset({"Resize", "Range", "NonMaxSuppression", "RandomNormal", "RandomUniform", "If", "Loop", "Scan"})
"""Operators left in FP32: some of their inputs have to be, or they hold graphs of their own."""

_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class HalfResult:
    """A network in mixed precision.

    Attributes:
        model: The converted model.
        half: Nodes that compute in FP16.
        kept: Nodes that could not, with the reason.
    """

    model: onnx.ModelProto
    half: tuple[str, ...]
    kept: tuple[tuple[str, str], ...]


def to_half(model: onnx.ModelProto) -> HalfResult:
    """Converts the floating-point parts of a model to FP16.

    Args:
        model: Checked model; stays as it is.
    """
    return _Converter(model).run()


class _Converter:
    """The conversion of one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        self.types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
        self.types |= {v.name: v.type.tensor_type.elem_type for v in inferred.input}
        self.constants = {t.name: t for t in self.graph.initializer}
        self.types |= {t.name: t.data_type for t in self.graph.initializer}
        self.producer = {name: node for node in self.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in self.graph.output}
        self.kept: list[tuple[str, str]] = []

    def run(self) -> HalfResult:
        integer = self.integer_side()
        half = [node for node in self.graph.node if id(node) not in integer and self.converts(node)]
        chosen = {id(node) for node in half}
        produced = {name for node in half for name in node.output if self.is_float(name)}
        nodes: list[onnx.NodeProto] = []
        cast: dict[tuple[str, int], str] = {}
        final = {name: f"{name}/half" for name in produced & self.outputs}
        for node in self.graph.node:
            want = TensorProto.FLOAT16 if id(node) in chosen else TensorProto.FLOAT
            for position, name in enumerate(node.input):
                if not self.is_float(name):
                    continue
                if name in self.constants:
                    if want == TensorProto.FLOAT16:
                        node.input[position] = self.half_constant(name, chosen)
                    continue
                have = TensorProto.FLOAT16 if name in produced else TensorProto.FLOAT
                source = final.get(name, name)
                node.input[position] = source if have == want else self.cast(nodes, cast, source, want)
            node.output[:] = [final.get(name, name) for name in node.output]
            nodes.append(node)
        for name, source in final.items():
            nodes.append(helper.make_node("Cast", [source], [name], name=f"{name}/float", to=TensorProto.FLOAT))
        self.finish(nodes)
        return HalfResult(self.model, tuple(node.name for node in half), tuple(self.kept))

    # What stays FP32.

    def integer_side(self) -> set[int]:
        """Q, DQ, integer layers, and what lies between an integer layer and the next Q."""
        side = {id(node) for node in self.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
        for node in self.graph.node:
            if node.op_type in INTEGER_LAYERS and all(self.dequantised(name) for name in node.input[:2]):
                side.add(id(node))
        between: dict[int, onnx.NodeProto] = {}
        for node in self.graph.node:
            inputs = [name for name in node.input if self.is_float(name) and name not in self.constants]
            if id(node) in side or node.op_type not in _ACCUMULATOR or not inputs:
                continue
            if all(name in self.producer and id(self.producer[name]) in side | between.keys() for name in inputs):
                between[id(node)] = node
        size = -1
        while size != len(between):
            size = len(between)
            for key, node in list(between.items()):
                readers = [reader for name in node.output for reader in self.readers.get(name, [])]
                ends = readers and not self.outputs.intersection(node.output)
                if not self.is_bias(node) and not (ends and all(id(r) in side | between.keys() for r in readers)):
                    del between[key]
        return side | between.keys()

    def dequantised(self, name: str) -> bool:
        return name in self.producer and self.producer[name].op_type == "DequantizeLinear"

    def is_bias(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds a constant vector to an integer matrix product."""
        if node.op_type != "Add":
            return False
        products = [self.producer.get(name) for name in node.input if name not in self.constants]
        vectors = [self.constants[name] for name in node.input if name in self.constants]
        return (
            len(vectors) == 1
            and len(vectors[0].dims) == 1
            and all(p is not None and p.op_type == "MatMul" and self.dequantised(p.input[1]) for p in products)
        )

    def converts(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in FP16 from now on."""
        if not any(self.is_float(name) for name in node.output):
            return False  # also comparisons: they read what they are given, in FP32
        if node.op_type in _FLOAT_ONLY or node.domain not in ("", "ai.onnx"):
            self.kept.append((node.name, f"{node.op_type} takes FP32"))
            return False
        if not any(self.is_float(name) for name in node.input):
            return False  # it makes floats, of a type that an attribute names
        large = [name for name in node.input if name in self.constants and self.overflows(self.constants[name])]
        if large:
            self.kept.append((node.name, f"{large[0]} holds values beyond {_LARGEST:g}"))
        return not large

    def overflows(self, tensor: TensorProto) -> bool:
        if tensor.data_type != TensorProto.FLOAT:
            return False
        values = numpy_helper.to_array(tensor)
        return bool((np.abs(values[np.isfinite(values)]) > _LARGEST).any())

    def is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    # The graph.

    def half_constant(self, name: str, chosen: set[int]) -> str:
        """The FP16 form of an initialiser; its FP32 form stays if anything else reads it."""
        new = name if all(id(reader) in chosen for reader in self.readers[name]) else f"{name}/half"
        if new not in self.constants or self.constants[new].data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(self.constants[name]).astype(np.float16)
            self.constants[new] = numpy_helper.from_array(values, new)
        return new

    def cast(self, nodes: list[onnx.NodeProto], cast: dict[tuple[str, int], str], name: str, to: int) -> str:
        """A value in another type; cast once for all that read it."""
        if (name, to) not in cast:
            result = f"{name}/{'half' if to == TensorProto.FLOAT16 else 'float'}"
            nodes.append(helper.make_node("Cast", [name], [result], name=f"{result}_cast", to=to))
            cast[name, to] = result
        return cast[name, to]

    def finish(self, nodes: Iterable[onnx.NodeProto]) -> None:
        kept = list(nodes)
        used = {name for node in kept for name in node.input} | self.outputs
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(kept)
        self.graph.initializer.extend(tensor for name, tensor in self.constants.items() if name in used)
