"""Small ONNX graphs, legal and illegal for TensorRT: our verifier and the real parser and builder are asked of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

C, SIZE = 16, 8


@dataclass
class Graph:
    """A graph under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        domain = str(attributes.pop("domain", ""))
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def qdq(self, x: str, name: str, *, zero: int = 0, dtype: type = np.int8, scale: object = 0.05, **axis: int) -> str:
        scale = np.asarray(scale, np.float32)
        grid = [self.constant(f"{name}.scale", scale), self.constant(f"{name}.zero", np.full(scale.shape, zero, dtype))]
        self.op("QuantizeLinear", [x, *grid], f"{name}/codes", **axis)
        return self.op("DequantizeLinear", [f"{name}/codes", *grid], name, **axis)

    def weight(
        self, name: str, shape: tuple[int, ...], *, axis: int | None = 0, dtype: type = np.int8, zero: int = 0
    ) -> str:
        codes = np.random.default_rng(len(name)).integers(0 if dtype == np.uint8 else -100, 100, shape).astype(dtype)
        count = () if axis is None else (shape[axis],)
        inputs = [
            self.constant(f"{name}.weight", codes),
            self.constant(f"{name}.weight_scale", np.full(count, 0.01, np.float32)),
            self.constant(f"{name}.weight_zero", np.full(count, zero, dtype)),
        ]
        return self.op("DequantizeLinear", inputs, f"{name}/weight", **({} if axis is None else {"axis": axis}))

    def conv(
        self, x: str, name: str, *, out: int = C, wide: int = C, group: int = 1, bias: bool = True, **weight: object
    ) -> str:
        inputs = [x, self.weight(name, (out, wide // group, 3, 3), **weight)]  # type: ignore[arg-type]
        if bias:
            inputs.append(self.constant(f"{name}.bias", np.linspace(-1, 1, out, dtype=np.float32)))
        return self.op("Conv", inputs, name, pads=[1, 1, 1, 1], group=group)

    def model(
        self,
        output: str,
        *,
        shape: tuple[int | str, ...] = (1, C, SIZE, SIZE),
        dtype: int = TensorProto.FLOAT,
        out_dtype: int | None = None,
        opsets: tuple[tuple[str, int], ...] = (("", 20),),
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", dtype, shape)],
            [helper.make_tensor_value_info(output, dtype if out_dtype is None else out_dtype, None)],
            self.constants,
        )
        imports = [helper.make_opsetid(*opset) for opset in opsets]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)


def _one(**options: object) -> onnx.ModelProto:
    """One integer convolution whose input quantiser takes the options."""
    g = Graph()
    return g.model(g.op("Relu", [g.conv(g.qdq("x", "a", **options), "c")], "y"))  # type: ignore[arg-type]


def _weight(**options: object) -> onnx.ModelProto:
    g = Graph()
    return g.model(g.conv(g.qdq("x", "a"), "c", **options))  # type: ignore[arg-type]


def _residual(both: bool = False, skip: bool = True) -> onnx.ModelProto:
    g = Graph()
    a = g.qdq("x", "a")
    branch = g.conv(a, "c")
    if both:
        branch = g.qdq(branch, "b")
    return g.model(g.op("Relu", [g.op("Add", [branch, a if skip else "x"], "s")], "y"))


def _int32_bias(kind: str) -> onnx.ModelProto:
    g = Graph()
    bias = [
        g.constant("c.bias", np.arange(C, dtype=np.int32)),
        g.constant("c.bias_scale", np.full(C, 5e-4, np.float32)),
    ]
    if kind == "Conv":
        a, w = g.qdq("x", "a"), g.weight("c", (C, C, 3, 3))
        g.op("DequantizeLinear", bias, "c/bias", axis=0)
        return g.model(g.op("Conv", [a, w, "c/bias"], "c"))
    a, w = g.qdq("x", "a"), g.weight("c", (C, C))
    g.op("DequantizeLinear", bias, "c/bias", axis=0)
    return g.model(g.op("Gemm", [a, w, "c/bias"], "c", transB=1), shape=(4, C))


def _gemm(**options: object) -> onnx.ModelProto:
    g = Graph()
    inputs = [g.qdq("x", "a"), g.weight("c", (24, C), **options), g.constant("c.bias", np.zeros(24, np.float32))]  # type: ignore[arg-type]
    return g.model(g.op("Gemm", inputs, "c", transB=1), shape=(4, C))


def _matmul(axis: int | None = 1) -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("MatMul", [g.qdq("x", "a"), g.weight("c", (C, 24), axis=axis)], "c"), shape=(2, 5, C))


def _float(kind: str = "Conv", half: bool = False) -> onnx.ModelProto:
    g = Graph()
    f = np.float16 if half else np.float32
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    if kind == "Conv":
        return g.model(g.op("Conv", ["x", g.constant("w", np.ones((C, C, 3, 3), f))], "c"), dtype=dtype)
    return g.model(g.op("MatMul", ["x", g.constant("w", np.ones((C, 8), f))], "c"), shape=(4, C), dtype=dtype)


def _op(kind: str, *, domain: str = "", **attributes: object) -> onnx.ModelProto:
    g = Graph()
    y = g.op(kind, ["x"], "y", domain=domain, **attributes)
    return g.model(y, opsets=(("", 20), *(((domain, 1),) if domain else ())))


def _quantised_input(kind: str) -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op(kind, [g.qdq("x", "a")], "y"))


def _mixed_add() -> onnx.ModelProto:
    g = Graph()
    g.op("Cast", ["x"], "h", to=TensorProto.FLOAT16)
    return g.model(g.op("Add", ["x", "h"], "y"))


def _mixed_conv() -> onnx.ModelProto:
    g = Graph()
    g.op("Cast", ["x"], "h", to=TensorProto.FLOAT16)
    return g.model(g.conv("h", "c"))


def _codes_into(kind: str) -> onnx.ModelProto:
    g = Graph()
    g.op("QuantizeLinear", ["x", g.constant("s", np.float32(0.1)), g.constant("z", np.int8(0))], "q")
    if kind == "Relu":
        return g.model(g.op("Relu", ["q"], "y"), out_dtype=TensorProto.INT8)
    if kind == "MaxPool":
        return g.model(g.op("MaxPool", ["q"], "y", kernel_shape=[2, 2]), out_dtype=TensorProto.INT8)
    w = g.constant("w", np.ones((C, C, 3, 3), np.int8))
    return g.model(g.op("ConvInteger", ["q", w], "y"), out_dtype=TensorProto.INT32)


def _computed_scale() -> onnx.ModelProto:
    g = Graph()
    g.op("ReduceMax", ["x"], "m", keepdims=0)
    g.op("QuantizeLinear", ["x", "m", g.constant("z", np.int8(0))], "q")
    g.op("DequantizeLinear", ["q", "m", "z"], "a")
    return g.model(g.conv("a", "c"))


def _dynamic_quantize() -> onnx.ModelProto:
    g = Graph()
    g.nodes.append(helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], name="dynamic"))
    return g.model(g.op("DequantizeLinear", ["q", "s", "z"], "y"))


def _qlinear() -> onnx.ModelProto:
    g = Graph()
    s, z = g.constant("s", np.float32(0.1)), g.constant("z", np.int8(0))
    g.op("QuantizeLinear", ["x", s, z], "q")
    w = g.constant("w", np.ones((C, C, 3, 3), np.int8))
    g.op("QLinearConv", ["q", s, z, w, s, z, s, z], "c")
    return g.model(g.op("DequantizeLinear", ["c", s, z], "y"))


def _no_zero_point() -> onnx.ModelProto:
    g = Graph()
    g.op("QuantizeLinear", ["x", g.constant("s", np.float32(0.1))], "q")
    return g.model(g.op("DequantizeLinear", ["q", "s"], "y"))


def _quantised_weight_in_float() -> onnx.ModelProto:
    g = Graph()
    w = g.constant("w", np.random.default_rng(0).normal(size=(C, C, 3, 3)).astype(np.float32))
    return g.model(g.op("Conv", [g.qdq("x", "a"), g.qdq(w, "wq", scale=np.full(C, 0.02), axis=0)], "c"))


def _shared_quantiser() -> onnx.ModelProto:
    g = Graph()
    a = g.qdq("x", "a")
    return g.model(g.op("Concat", [g.conv(a, "c"), g.conv(a, "d")], "y", axis=1))


def _pool_between() -> onnx.ModelProto:
    g = Graph()
    pooled = g.op("MaxPool", [g.op("Relu", [g.conv(g.qdq("x", "a"), "c")], "r")], "p", kernel_shape=[2, 2])
    return g.model(g.conv(g.qdq(pooled, "b"), "d"))


def _input_type(dtype: int) -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("Identity", ["x"], "y"), dtype=dtype)


def _half_scales(mixed: bool) -> onnx.ModelProto:
    g = Graph()
    s, z = g.constant("s", np.float16(0.1)), g.constant("z", np.int8(0))
    g.op("QuantizeLinear", ["x", s, z], "q")
    g.op("DequantizeLinear", ["q", s, z], "a")
    if mixed:
        return g.model(g.conv("a", "c"), dtype=TensorProto.FLOAT16)
    return g.model(g.op("Relu", ["a"], "y"), dtype=TensorProto.FLOAT16)


def _cast_chain() -> onnx.ModelProto:
    g = Graph()
    g.op("Cast", [g.conv(g.qdq("x", "a"), "c")], "h", to=TensorProto.FLOAT16)
    g.op("GlobalAveragePool", ["h"], "p")
    return g.model(g.op("Cast", ["p"], "y", to=TensorProto.FLOAT))


def _transposed() -> onnx.ModelProto:
    g = Graph()
    inputs = [g.qdq("x", "a"), g.weight("c", (C, C, 3, 3), axis=1)]
    return g.model(g.op("ConvTranspose", inputs, "c"))


def _empty() -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )


def _conv1d() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("Conv", [g.qdq("x", "a"), g.weight("c", (C, C, 3))], "c"), shape=(1, C, SIZE))


def _conv3d() -> onnx.ModelProto:
    g = Graph()
    return g.model(g.op("Conv", [g.qdq("x", "a"), g.weight("c", (C, C, 3, 3, 3))], "c"), shape=(1, C, 4, SIZE, SIZE))


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "integer convolution": _one,
    "convolution without bias": lambda: _weight(bias=False),
    "per-tensor weights": lambda: _weight(axis=None),
    "depthwise convolution": lambda: _weight(group=C),
    "grouped convolution": lambda: _weight(group=4),
    "three channels": lambda: _weight(out=3),
    "one-dimensional convolution": _conv1d,
    "three-dimensional convolution": _conv3d,
    "transposed convolution": _transposed,
    "residual, Q on the skip edge": _residual,
    "residual, Q on both edges": lambda: _residual(both=True),
    "residual, float skip": lambda: _residual(skip=False),
    "integer Gemm": _gemm,
    "integer Gemm, per-tensor": lambda: _gemm(axis=None),
    "integer MatMul": _matmul,
    "integer MatMul, per-tensor": lambda: _matmul(axis=None),
    "float convolution": _float,
    "half convolution": lambda: _float(half=True),
    "float MatMul": lambda: _float("MatMul"),
    "weights quantised from float": _quantised_weight_in_float,
    "one quantiser, two readers": _shared_quantiser,
    "pool between convolution and Q": _pool_between,
    "no zero point": _no_zero_point,
    "half scales": lambda: _half_scales(False),
    "FP16 behind an integer convolution": _cast_chain,
    "max pool on codes": lambda: _codes_into("MaxPool"),
    "codes for a Softmax": lambda: _quantised_input("Softmax"),
    "codes for a Relu": lambda: _quantised_input("Relu"),
    "int64 input": lambda: _input_type(TensorProto.INT64),
    "boolean input": lambda: _input_type(TensorProto.BOOL),
    "zero point 3": lambda: _one(zero=3),
    "unsigned, zero point 0": lambda: _one(dtype=np.uint8),
    "unsigned, zero point 128": lambda: _one(dtype=np.uint8, zero=128),
    "unsigned weights": lambda: _weight(dtype=np.uint8, zero=50),
    "unsigned weights, zero point 0": lambda: _weight(dtype=np.uint8),
    "weight zero point": lambda: _weight(zero=1),
    "int16 activations": lambda: _one(dtype=np.int16),
    "int32 bias of a convolution": lambda: _int32_bias("Conv"),
    "int32 bias of a Gemm": lambda: _int32_bias("Gemm"),
    "scale zero": lambda: _one(scale=0.0),
    "negative scale": lambda: _one(scale=-0.1),
    "NaN scale": lambda: _one(scale=np.nan),
    "per-channel activations": lambda: _one(scale=np.full(C, 0.05), axis=1),
    "weight scales along another axis": lambda: _weight(axis=1),
    "Gemm weight scales along inputs": lambda: _gemm(axis=1),
    "MatMul weight scales along inputs": lambda: _matmul(axis=0),
    "computed scale": _computed_scale,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "QLinearConv": _qlinear,
    "ConvInteger": lambda: _codes_into("ConvInteger"),
    "codes into Relu": lambda: _codes_into("Relu"),
    "FP16 and FP32 added": _mixed_add,
    "FP16 into an FP32 convolution": _mixed_conv,
    "half scales into an FP32 convolution": lambda: _half_scales(True),
    "double": lambda: _input_type(TensorProto.DOUBLE),
    "uint8 input": lambda: _input_type(TensorProto.UINT8),
    "string input": lambda: _input_type(TensorProto.STRING),
    "foreign domain": lambda: _op("Gelu", domain="com.acme"),
    "onnxruntime's domain": lambda: _op("QuickGelu", domain="com.microsoft"),
    "unknown operator": lambda: _op("Frobnicate"),
    "Det": lambda: _op("Det"),
    "Unique": lambda: _op("Unique"),
    "Hardmax": lambda: _op("Hardmax"),
    "Erf": lambda: _op("Erf"),
    "no nodes": _empty,
}
"""Graphs by name."""

ILLEGAL: dict[str, str] = {
    "no zero point": "unsigned",
    "zero point 3": "zero point",
    "unsigned, zero point 0": "unsigned",
    "unsigned, zero point 128": "unsigned",
    "unsigned weights": "unsigned",
    "unsigned weights, zero point 0": "unsigned",
    "weight zero point": "zero point",
    "int16 activations": "type",
    "int32 bias of a convolution": "INT32",
    "int32 bias of a Gemm": "INT32",
    "scale zero": "scale",
    "negative scale": "scale",
    "NaN scale": "scale",
    "computed scale": "scale",
    "DynamicQuantizeLinear": "operator",
    "QLinearConv": "operator",
    "ConvInteger": "operator",
    "FP16 and FP32 added": "mixed types",
    "FP16 into an FP32 convolution": "mixed types",
    "half scales into an FP32 convolution": "mixed types",
    "string input": "type",
    "foreign domain": "operator",
    "onnxruntime's domain": "operator",
    "unknown operator": "operator",
    "Det": "operator",
    "Unique": "operator",
    "no nodes": "output",
}
"""The rule that an illegal graph breaks; every other graph is legal."""

MISREAD = {"no zero point", "unsigned, zero point 0", "foreign domain"}
"""Graphs that the parser takes and computes something else for."""

FLOAT_KERNEL = {
    "transposed convolution",
    "per-channel activations",
    "weight scales along another axis",
    "Gemm weight scales along inputs",
    "MatMul weight scales along inputs",
}
"""Legal graphs with quantised weights whose layer computes on floats all the same."""
