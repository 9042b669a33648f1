"""Lowering of fake quantisation: QuantizeLinear/DequantizeLinear pairs, and layers with integer weights.

The codes and scales written are those that the fake-quantised program computes with. Placement is the program's; what
is decided here is the form that the runtime fuses into integer kernels: int8 weights behind a per-channel
DequantizeLinear, and a float bias for Conv. onnxruntime quantises that one itself, but wants an int32 bias for Gemm;
TensorRT rejects int32 and takes floats everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import fx, nn

from ..errors import UnsupportedError, UserError
from ..passes.quant.modules import FakeQuantize, QuantConv1d, QuantConv2d, QuantConv3d, QuantLinear
from .lower_context import Lowering, ModuleLowering, Value, array_of, function_name
from .lower_ops_conv import emit_conv, require_batched
from .lower_shortcut import selection_conv

_KEEPS_GRID = frozenset(
    {"view", "reshape", "flatten", "permute", "transpose", "unsqueeze", "squeeze", "contiguous", "clone", "dropout"}
)
"""Operations that move values without changing them."""


def fake_quantize(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`FakeQuantize`: a QuantizeLinear and a DequantizeLinear."""
    x = ctx.value(node.args[0])
    if not module.enabled:
        return x
    x = selection_conv(ctx, node, module) or x
    return quantize_dequantize(ctx, node, x, module, str(node.target))


def quantize_dequantize(ctx: Lowering, node: fx.Node, x: str, module: Any, path: str, *, part: str = "") -> str:
    """Emits a Q/DQ pair with the scale and zero point of a `FakeQuantize`."""
    parameters = grid_parameters(ctx, module, path)
    prefix = f"{part}/" if part else ""
    codes = ctx.emit(node, "QuantizeLinear", [x, *parameters], part=f"{prefix}codes")
    return ctx.emit(node, "DequantizeLinear", [codes, *parameters], part=part)


def grid_parameters(ctx: Lowering, module: Any, path: str) -> tuple[str, str]:
    """Scale and zero point as initialisers.

    Raises:
        UserError: The module was never calibrated.
        UnsupportedError: ONNX has no such grid.
    """
    grid = module.grid
    if not module.calibrated:
        raise UserError(
            "a quantised value has no range yet",
            where=path,
            why="the program was fake-quantised but not calibrated",
            hint="run secateur quantize before export",
        )
    if grid.bits != 8 or grid.narrow:
        raise UnsupportedError(
            f"activations on a grid from {grid.low} to {grid.high} have no ONNX form",
            where=path,
            why="QuantizeLinear uses all codes of int8 or uint8",
            hint="use an 8-bit grid that is not narrow",
        )
    scale = ctx.builder.constant(f"{path}.scale", np.asarray(float(module.scale), np.float32))
    dtype = np.int8 if grid.signed else np.uint8
    return scale, ctx.builder.constant(f"{path}.zero_point", np.asarray(int(module.zero_point), dtype))


def integer_weight(ctx: Lowering, node: fx.Node, module: Any, *, transposed: bool = False) -> tuple[str, np.ndarray]:
    """Emits an int8 weight with its DequantizeLinear.

    Returns:
        The dequantised value and the scales, float32 [out channels] (or a scalar).

    Raises:
        UnsupportedError: The codes do not fit into int8.
    """
    path = str(node.target)
    codes_tensor, scales_tensor = module.integer_weight()
    codes, scales = codes_tensor.detach().cpu().numpy(), scales_tensor.detach().cpu().numpy()
    if codes.dtype != np.int8:
        raise UnsupportedError(
            f"weights of type {codes.dtype} have no integer kernel", where=path, hint="quantise weights to 8 bits"
        )
    suffix, axis = (".T", codes.ndim - 1) if transposed else ("", 0)
    inputs = [
        ctx.builder.constant(f"{path}.weight{suffix}", codes.T if transposed else codes),
        ctx.builder.constant(f"{path}.weight_scale", scales),
        ctx.builder.constant(f"{path}.weight_zero_point", np.zeros(scales.shape, np.int8)),
    ]
    value = ctx.emit(node, "DequantizeLinear", inputs, part="weight", axis=axis if scales.ndim else None)
    return value, scales


def quant_conv(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`QuantConv*`: Conv of an int8 weight, with a float bias."""
    require_batched(ctx, node.args[0], len(module.kernel_size))
    weight, _ = integer_weight(ctx, node, module)
    bias = None if module.bias is None else ctx.parameter(f"{node.target}.bias", module.bias)
    hyper = SimpleNamespace(
        **{k: getattr(module, k) for k in ("stride", "padding", "dilation", "groups", "padding_mode")}
    )
    return emit_conv(ctx, node, ctx.value(node.args[0]), weight, bias, module.kernel_size, hyper)


def quant_linear(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`QuantLinear`: Gemm of an int8 weight on matrices (its bias is the dialect's), else MatMul and a float bias."""
    source = node.args[0]
    quantizer = feeding_quantizer(ctx, source)
    x = ctx.value(source)
    if quantizer is not None and quantizer is not source:
        # The runtime looks for DequantizeLinear right in front of the Gemm; rounding to the same grid again is exact.
        x = quantize_dequantize(ctx, node, x, ctx.module(quantizer), str(quantizer.target), part="input")
    if ctx.fact(source).rank != 2:
        weight, _ = integer_weight(ctx, node, module, transposed=True)
        if module.bias is None:
            return ctx.emit(node, "MatMul", [x, weight])
        product = ctx.emit(node, "MatMul", [x, weight], part="matmul")
        return ctx.emit(node, "Add", [product, _bias_of_rank(ctx, node, module, ctx.fact(source).rank)])
    weight, scales = integer_weight(ctx, node, module)
    inputs = [x, weight]
    if module.bias is not None:
        bias = None
        if quantizer is not None and ctx.dialect != "tensorrt":
            bias = _integer_bias(ctx, node, module, scales, ctx.module(quantizer))
        inputs.append(bias or ctx.parameter(f"{node.target}.bias", module.bias))
    return ctx.emit(node, "Gemm", inputs, transB=1)


def _bias_of_rank(ctx: Lowering, node: fx.Node, module: Any, rank: int) -> str:
    """The bias, with as many axes as the output where the batch is fixed.

    onnxruntime makes a Gemm of MatMul and Add if it knows all sizes and the bias has one axis, before it looks for
    integer kernels; that Gemm computes in floats, and dequantises its weight in every run.
    """
    if ctx.program.static_batch is None or ctx.dialect == "tensorrt":
        return ctx.parameter(f"{node.target}.bias", module.bias)
    row = module.bias.detach().reshape(*[1] * (rank - 1), -1)
    return ctx.builder.constant(f"{node.target}.bias_row_{rank}d", array_of(row))


def _integer_bias(ctx: Lowering, node: fx.Node, module: Any, scales: np.ndarray, quantizer: Any) -> str:
    """An int32 bias in steps of the accumulator, `scale_input * scale_weight`."""
    # The input's scale belongs to this call: a module that is called twice has two biases.
    calls = len(ctx.program.graph.find_nodes(op="call_module", target=node.target))
    path = str(node.target) if calls == 1 else node.name
    step = np.asarray(np.float32(float(quantizer.scale)) * scales, np.float32)
    limits = np.iinfo(np.int32)
    codes = np.clip(np.rint(module.bias.detach().cpu().numpy() / step.astype(np.float64)), limits.min, limits.max)
    inputs = [
        ctx.builder.constant(f"{path}.bias", codes.astype(np.int32)),
        ctx.builder.constant(f"{path}.bias_scale", step),
    ]
    return ctx.emit(node, "DequantizeLinear", inputs, part="bias", axis=0 if step.ndim else None)


def feeding_quantizer(ctx: Lowering, node: Any) -> fx.Node | None:
    """The `FakeQuantize` node on whose grid the values of `node` lie, behind operations that only move values."""
    while isinstance(node, fx.Node):
        if node.op == "call_module":
            module = ctx.module(node)
            if isinstance(module, FakeQuantize):
                return node if module.enabled else None
            if not isinstance(module, nn.Dropout | nn.Identity):
                return None
        elif node.op != "call_function" or function_name(node.target) not in _KEEPS_GRID:
            return None
        node = node.args[0]
    return None


MODULES: Mapping[type[nn.Module], ModuleLowering] = {
    FakeQuantize: fake_quantize,
    **dict.fromkeys((QuantConv1d, QuantConv2d, QuantConv3d), quant_conv),
    QuantLinear: quant_linear,
}
"""Lowering by module class."""
