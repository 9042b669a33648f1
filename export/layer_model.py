"""Networks of one layer, as the lowering writes it: what is timed to learn what a layer shape costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..passes.quant.grid import QuantScheme

CHANNELWISE = 0
"""Value of `LayerShape.groups` for a depthwise convolution: as many groups as channels."""


@dataclass(frozen=True)
class LayerShape:
    """All that the time of one layer depends on.

    Attributes:
        kind: `conv`, `conv_transpose`, `linear`, or `concat` of two values along their channels or features.
        integer: Runs on the target's integer grids, else in FP32.
        inputs: Channels or features in; of a concatenation, those of the first value.
        outputs: Channels or features out; of a concatenation, those of the second value.
        size: Spatial size of the input; of features the sizes between batch and features.
        kernel: Kernel size; this and the next three are empty for a linear layer and a concatenation.
        stride: Stride.
        padding: Zeros on each side.
        dilation: Dilation.
        groups: Groups, or `CHANNELWISE`.
        batch: Samples.
        last: Features are the last axis, not the one behind the batch; only of a concatenation.
    """

    kind: str
    integer: bool
    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    batch: int = 1
    last: bool = False

    @property
    def key(self) -> str:
        """The shape in words, for files: `int8 conv 16>32 k3x3 s1x1 p1x1 d1x1 g1 at 32x32 batch 8`."""
        number = "int8" if self.integer else "fp32"
        hyper = [f"{letter}{_times(v)}" for letter, v in zip("kspd", self._hyper, strict=True) if v]
        groups = [f"g{self.groups or 'each'}"] if self.kernel else []
        at = [f"at {_times(self.size)}"] if self.size else []
        last = ["last"] if self.last else []
        words = [number, self.kind, f"{self.inputs}>{self.outputs}", *hyper, *groups, *last, *at, f"batch {self.batch}"]
        return " ".join(words)

    @property
    def _hyper(self) -> tuple[tuple[int, ...], ...]:
        return self.kernel, self.stride, self.padding, self.dilation


def layer_model(shape: LayerShape, scheme: QuantScheme, opset: int) -> onnx.ModelProto:
    """A network of that layer alone with random weights; its input and output are codes if the layer is integer.

    Args:
        shape: The layer.
        scheme: Number grids of the target.
        opset: ONNX operator set.
    """
    return _OneLayer(shape, scheme).model(opset)


class _OneLayer:
    """Builds the graph of one layer."""

    def __init__(self, shape: LayerShape, scheme: QuantScheme) -> None:
        self.shape, self.scheme = shape, scheme
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        signed = scheme.activation.signed
        self.code_type = TensorProto.INT8 if signed else TensorProto.UINT8
        self.grid = (self.add("scale", np.float32(0.02)), self.add("zero", (np.int8 if signed else np.uint8)(0)))

    def add(self, name: str, value: np.ndarray | np.generic) -> str:
        """Adds a constant."""
        self.arrays[name] = np.asarray(value)
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def model(self, opset: int) -> onnx.ModelProto:
        """The finished model."""
        shape, integer = self.shape, self.shape.integer
        inputs = {name: self._value(channels) for name, channels in self._inputs().items()}
        x = [self.node("DequantizeLinear", [n, *self.grid], f"{n}_float") if integer else n for n in inputs]
        if shape.kind == "concat":
            y = self.node("Concat", x, "layer", axis=-1 if shape.last else 1)
        else:
            y = self.node("Relu", [self._linear(*x) if shape.kind == "linear" else self._conv(*x)], "relu")
        y = self.node("QuantizeLinear", [y, *self.grid], "y") if integer else self.node("Identity", [y], "y")
        number = self.code_type if integer else TensorProto.FLOAT
        ends = [helper.make_tensor_value_info(n, number, dims) for n, dims in (*inputs.items(), (y, None))]
        constants = [numpy_helper.from_array(value, name) for name, value in self.arrays.items()]
        graph = helper.make_graph(self.nodes, "one_layer", ends[:-1], ends[-1:], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)

    def _inputs(self) -> dict[str, int]:
        """Channels of each input."""
        if self.shape.kind == "concat":
            return {"x": self.shape.inputs, "z": self.shape.outputs}
        return {"x": self.shape.inputs}

    def _value(self, channels: int) -> list[int | str]:
        """The batch stays open, as the lowering leaves it: with all sizes known the runtime takes other kernels.

        MatMul and Add on tokens then become a float Gemm between reshapes, weights dequantised in every run.
        """
        shape = self.shape
        if shape.kind == "linear" or shape.last:
            return ["batch", *shape.size, channels]
        return ["batch", channels, *shape.size]

    def _conv(self, x: str) -> str:
        shape = self.shape
        groups = shape.groups or shape.inputs
        if shape.kind == "conv_transpose":
            op, dims = "ConvTranspose", (shape.inputs, shape.outputs // groups, *shape.kernel)
        else:
            op, dims = "Conv", (shape.outputs, shape.inputs // groups, *shape.kernel)
        weight = self._weight(dims, axis=1 if op == "ConvTranspose" else 0)
        bias = self.add("bias", self.rng.standard_normal(shape.outputs).astype(np.float32))
        return self.node(
            op,
            [x, weight, bias],
            "layer",
            kernel_shape=shape.kernel,
            strides=shape.stride,
            pads=shape.padding * 2,
            dilations=shape.dilation,
            group=groups,
        )

    def _linear(self, x: str) -> str:
        shape = self.shape
        if shape.size:
            weight = self._weight((shape.inputs, shape.outputs), axis=1)
            product = self.node("MatMul", [x, weight], "product")
            bias = self.add("bias", self.rng.standard_normal(shape.outputs).astype(np.float32))
            return self.node("Add", [product, bias], "layer")
        weight = self._weight((shape.outputs, shape.inputs), axis=0)
        if not shape.integer:
            bias = self.add("bias", self.rng.standard_normal(shape.outputs).astype(np.float32))
            return self.node("Gemm", [x, weight, bias], "layer", transB=1)
        codes = self.add("bias_codes", self.rng.integers(-99, 99, shape.outputs, dtype=np.int32))
        step = self.add("bias_scale", np.full(shape.outputs, 2e-4, np.float32))
        bias = self.node("DequantizeLinear", [codes, step], "bias", axis=0)
        return self.node("Gemm", [x, weight, bias], "layer", transB=1)

    def _weight(self, dims: tuple[int, ...], axis: int) -> str:
        if not self.shape.integer:
            return self.add("weight", self.rng.standard_normal(dims).astype(np.float32))
        codes = self.add("weight_codes", self.rng.integers(-127, 127, dims, dtype=np.int8))
        channels = (dims[axis],) if self.scheme.per_channel else ()
        scale = self.add("weight_scale", np.full(channels, 0.01, np.float32))
        zero = self.add("weight_zero", np.zeros(channels, np.int8))
        axes = {"axis": axis} if channels else {}
        return self.node("DequantizeLinear", [codes, scale, zero], "weight", **axes)


def _times(values: tuple[int, ...]) -> str:
    return "x".join(str(value) for value in values)
