"""Lowering of layers: convolution, linear, normalisation, embedding, dropout; as modules and as functional calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from .lower_context import Lowering, ModuleLowering, NoLowering, OpLowering, Value, spread

PAD_MODES: Mapping[str, str] = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
"""ONNX names of torch's padding modes."""


def conv_pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """ONNX pads (begins, then ends) of torch's `padding`, which may be "same" or "valid"."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        begins = [total // 2 for total in totals]
        return begins + [total - begin for total, begin in zip(totals, begins, strict=True)]
    return spread(padding, len(kernel)) * 2


def emit_conv(
    ctx: Lowering, node: fx.Node, x: str, weight: str, bias: str | None, kernel: Sequence[int], hyper: SimpleNamespace
) -> str:
    """Emits a Conv.

    Args:
        ctx: The lowering.
        node: The fx node.
        x: Input value.
        weight: Weight value.
        bias: Bias value, if any.
        kernel: Spatial kernel size.
        hyper: `stride`, `padding`, `dilation`, `groups` in torch's terms, and optionally `padding_mode`.
    """
    dilation = spread(hyper.dilation, len(kernel))
    pads = conv_pads(hyper.padding, kernel, dilation)
    mode = getattr(hyper, "padding_mode", "zeros")
    if mode != "zeros":
        axes = len(kernel)
        vector = [0, 0, *pads[:axes], 0, 0, *pads[axes:]]
        x = ctx.emit(node, "Pad", [x, ctx.constant(node, "pads", vector)], part="pad", mode=PAD_MODES[mode])
        pads = [0] * len(pads)
    return ctx.emit(
        node,
        "Conv",
        [x, weight] if bias is None else [x, weight, bias],
        kernel_shape=list(kernel),
        strides=spread(hyper.stride, len(kernel)),
        pads=pads,
        dilations=dilation,
        group=hyper.groups,
    )


def emit_conv_transpose(
    ctx: Lowering, node: fx.Node, inputs: Sequence[str], kernel: Sequence[int], hyper: SimpleNamespace
) -> str:
    """Emits a ConvTranspose; `hyper` as for `emit_conv`, with `output_padding`."""
    axes = len(kernel)
    return ctx.emit(
        node,
        "ConvTranspose",
        inputs,
        kernel_shape=list(kernel),
        strides=spread(hyper.stride, axes),
        pads=spread(hyper.padding, axes) * 2,
        dilations=spread(hyper.dilation, axes),
        output_padding=spread(hyper.output_padding, axes),
        group=hyper.groups,
    )


def affine(ctx: Lowering, node: fx.Node, module: Any) -> list[str]:
    """Weight of a module, and its bias if it has one."""
    path = str(node.target)
    names = [ctx.parameter(f"{path}.weight", module.weight)]
    if module.bias is not None:
        names.append(ctx.parameter(f"{path}.bias", module.bias))
    return names


def require_batched(ctx: Lowering, node: Any, spatial: int) -> None:
    """Declines an input without a batch axis.

    Raises:
        NoLowering: The input has no batch axis.
    """
    if ctx.fact(node).rank != spatial + 2:
        raise NoLowering("the input has no batch axis")


def conv_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`."""
    require_batched(ctx, node.args[0], len(module.kernel_size))
    weight, *bias = affine(ctx, node, module)
    hyper = SimpleNamespace(**{k: getattr(module, k) for k in ("stride", "padding", "dilation", "groups")})
    hyper.padding_mode = module.padding_mode
    x = ctx.value(node.args[0])
    return emit_conv(ctx, node, x, weight, bias[0] if bias else None, module.kernel_size, hyper)


def conv_transpose_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.ConvTranspose1d`, `2d`, `3d`."""
    require_batched(ctx, node.args[0], len(module.kernel_size))
    inputs = [ctx.value(node.args[0]), *affine(ctx, node, module)]
    hyper = {k: getattr(module, k) for k in ("stride", "padding", "dilation", "groups", "output_padding")}
    return emit_conv_transpose(ctx, node, inputs, module.kernel_size, SimpleNamespace(**hyper))


def conv_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.conv{1,2,3}d`: the weight is any value."""
    weight = ctx.fact(a.weight)
    require_batched(ctx, a.input, weight.rank - 2)
    bias = None if a.bias is None else ctx.value(a.bias)
    return emit_conv(ctx, node, ctx.value(a.input), ctx.value(a.weight), bias, weight.shape[2:], a)


def conv_transpose_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.conv_transpose{1,2,3}d`."""
    weight = ctx.fact(a.weight)
    require_batched(ctx, a.input, weight.rank - 2)
    inputs = [ctx.value(v) for v in (a.input, a.weight, a.bias) if v is not None]
    return emit_conv_transpose(ctx, node, inputs, weight.shape[2:], a)


def linear_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.Linear`: Gemm on matrices, MatMul and Add on anything of higher rank."""
    x, path = node.args[0], str(node.target)
    if ctx.fact(x).rank == 2:
        return ctx.emit(node, "Gemm", [ctx.value(x), *affine(ctx, node, module)], transB=1)
    weight = ctx.builder.constant(f"{path}.weight.T", module.weight.detach().cpu().numpy().T)
    if module.bias is None:
        return ctx.emit(node, "MatMul", [ctx.value(x), weight])
    product = ctx.emit(node, "MatMul", [ctx.value(x), weight], part="matmul")
    return ctx.emit(node, "Add", [product, ctx.parameter(f"{path}.bias", module.bias)])


def linear_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.linear`."""
    x, weight = ctx.value(a.input), ctx.value(a.weight)
    bias = [] if a.bias is None else [ctx.value(a.bias)]
    if ctx.fact(a.input).rank == 2:
        return ctx.emit(node, "Gemm", [x, weight, *bias], transB=1)
    transposed = ctx.emit(node, "Transpose", [weight], part="transposed", perm=[1, 0])
    if not bias:
        return ctx.emit(node, "MatMul", [x, transposed])
    return ctx.emit(node, "Add", [ctx.emit(node, "MatMul", [x, transposed], part="matmul"), *bias])


def batch_norm_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.BatchNorm*` in evaluation mode; without running statistics those of the batch are computed."""
    x, path = node.args[0], str(node.target)
    ones, zeros = np.ones(module.num_features, np.float32), np.zeros(module.num_features, np.float32)
    scale = _or_constant(ctx, f"{path}.weight", module.weight, ones)
    shift = _or_constant(ctx, f"{path}.bias", module.bias, zeros)
    if module.running_mean is None:
        return _normalise_by_batch(ctx, node, x, module, scale, shift)
    mean = ctx.parameter(f"{path}.running_mean", module.running_mean)
    variance = ctx.parameter(f"{path}.running_var", module.running_var)
    return ctx.emit(node, "BatchNormalization", [ctx.value(x), scale, shift, mean, variance], epsilon=module.eps)


def _or_constant(ctx: Lowering, name: str, tensor: Tensor | None, default: np.ndarray) -> str:
    return ctx.builder.constant(name, default) if tensor is None else ctx.parameter(name, tensor)


def _normalise_by_batch(ctx: Lowering, node: fx.Node, x: Any, module: Any, scale: str, shift: str) -> str:
    rank = ctx.fact(x).rank
    axes = ctx.constant(node, "axes", [axis for axis in range(rank) if axis != 1])
    mean = ctx.emit(node, "ReduceMean", [ctx.value(x), axes], part="mean", keepdims=1)
    centred = ctx.emit(node, "Sub", [ctx.value(x), mean], part="centred")
    square = ctx.emit(node, "Mul", [centred, centred], part="square")
    variance = ctx.emit(node, "ReduceMean", [square, axes], part="variance", keepdims=1)
    eps = ctx.constant(node, "eps", module.eps, np.float32)
    deviation = ctx.emit(node, "Sqrt", [ctx.emit(node, "Add", [variance, eps], part="sum")], part="deviation")
    unit = ctx.emit(node, "Div", [centred, deviation], part="unit")
    return _scale_channels(ctx, node, unit, scale, shift, rank)


def _scale_channels(ctx: Lowering, node: fx.Node, x: str, scale: str, shift: str, rank: int) -> str:
    column = ctx.constant(node, "column", [-1] + [1] * (rank - 2))
    scale = ctx.emit(node, "Reshape", [scale, column], part="scale")
    shift = ctx.emit(node, "Reshape", [shift, column], part="shift")
    return ctx.emit(node, "Add", [ctx.emit(node, "Mul", [x, scale], part="scaled"), shift])


def layer_norm_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.LayerNorm`."""
    path = str(node.target)
    ones = np.ones(tuple(module.normalized_shape), np.float32)
    inputs = [ctx.value(node.args[0]), _or_constant(ctx, f"{path}.weight", module.weight, ones)]
    if module.bias is not None:
        inputs.append(ctx.parameter(f"{path}.bias", module.bias))
    return ctx.emit(node, "LayerNormalization", inputs, axis=-len(module.normalized_shape), epsilon=module.eps)


def layer_norm_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.layer_norm`."""
    shape = list(a.normalized_shape)
    scale = ctx.constant(node, "ones", np.ones(shape), np.float32) if a.weight is None else ctx.value(a.weight)
    inputs = [ctx.value(a.input), scale] + ([] if a.bias is None else [ctx.value(a.bias)])
    return ctx.emit(node, "LayerNormalization", inputs, axis=-len(shape), epsilon=a.eps)


def _group_norm(
    ctx: Lowering, node: fx.Node, x: Any, groups: int, eps: float, scale: str | None, shift: str | None
) -> str:
    """Group norm as instance norm of [batch, groups, rest], then the affine map of the channels."""
    fact = ctx.fact(x)
    ones, zeros = (
        ctx.constant(node, "ones", [1] * groups, np.float32),
        ctx.constant(node, "zeros", [0] * groups, np.float32),
    )
    split = ctx.emit(node, "Reshape", [ctx.value(x), ctx.constant(node, "groups", [0, groups, -1])], part="split")
    unit = ctx.emit(node, "InstanceNormalization", [split, ones, zeros], part="unit", epsilon=eps)
    shape = ctx.emit(node, "Shape", [ctx.value(x)], part="shape")
    if scale is None or shift is None:
        return ctx.emit(node, "Reshape", [unit, shape])
    joined = ctx.emit(node, "Reshape", [unit, shape], part="joined")
    return _scale_channels(ctx, node, joined, scale, shift, fact.rank)


def group_norm_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.GroupNorm`."""
    scale, shift = affine(ctx, node, module) if module.affine else (None, None)
    return _group_norm(ctx, node, node.args[0], module.num_groups, module.eps, scale, shift)


def group_norm_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.group_norm`."""
    scale = None if a.weight is None else ctx.value(a.weight)
    shift = None if a.bias is None else ctx.value(a.bias)
    if (scale is None) != (shift is None):
        raise NoLowering("group norm with only one of weight and bias")
    return _group_norm(ctx, node, a.input, a.num_groups, a.eps, scale, shift)


def instance_norm_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.InstanceNorm*` without running statistics."""
    if module.running_mean is not None:
        return batch_norm_module(ctx, node, module)
    path, count = str(node.target), module.num_features
    scale = _or_constant(ctx, f"{path}.weight", module.weight, np.ones(count, np.float32))
    shift = _or_constant(ctx, f"{path}.bias", module.bias, np.zeros(count, np.float32))
    return ctx.emit(node, "InstanceNormalization", [ctx.value(node.args[0]), scale, shift], epsilon=module.eps)


def instance_norm_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.instance_norm` that uses the statistics of its input."""
    if not a.use_input_stats:
        raise NoLowering("instance norm by running statistics")
    count = ctx.fact(a.input).shape[1]
    scale = ctx.constant(node, "ones", [1] * count, np.float32) if a.weight is None else ctx.value(a.weight)
    shift = ctx.constant(node, "zeros", [0] * count, np.float32) if a.bias is None else ctx.value(a.bias)
    return ctx.emit(node, "InstanceNormalization", [ctx.value(a.input), scale, shift], epsilon=a.eps)


def embedding_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """`nn.Embedding`."""
    return ctx.emit(node, "Gather", [ctx.parameter(f"{node.target}.weight", module.weight), ctx.value(node.args[0])])


def embedding_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.embedding`."""
    return ctx.emit(node, "Gather", [ctx.value(a.weight), ctx.value(a.indices)])


def identity_module(ctx: Lowering, node: fx.Node, module: Any) -> Value:
    """Dropout and identity."""
    return ctx.value(node.args[0])


def prelu(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.prelu`: one slope per channel."""
    slope, rank = ctx.value(a.weight), ctx.fact(a.self).rank
    if ctx.fact(a.weight).shape[0] > 1 and rank > 2:
        column = ctx.constant(node, "column", [-1] + [1] * (rank - 2))
        slope = ctx.emit(node, "Reshape", [slope, column], part="slope")
    return ctx.emit(node, "PRelu", [ctx.value(a.self), slope])


def batch_norm_function(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.batch_norm` by running statistics."""
    if a.running_mean is None or any(v is None for v in (a.weight, a.bias)):
        raise NoLowering("batch norm without running statistics or affine parameters")
    inputs = [ctx.value(v) for v in (a.input, a.weight, a.bias, a.running_mean, a.running_var)]
    return ctx.emit(node, "BatchNormalization", inputs, epsilon=a.eps)


MODULES: Mapping[type[nn.Module], ModuleLowering] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), conv_module),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), conv_transpose_module),
    nn.Linear: linear_module,
    _BatchNorm: batch_norm_module,
    _InstanceNorm: instance_norm_module,
    nn.LayerNorm: layer_norm_module,
    nn.GroupNorm: group_norm_module,
    nn.Embedding: embedding_module,
    nn.Identity: identity_module,
    _DropoutNd: identity_module,
}
"""Lowering by module class; a subclass takes that of its nearest base."""

OPS: Mapping[str, OpLowering] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv_function),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose_function),
    "linear": linear_function,
    "layer_norm": layer_norm_function,
    "group_norm": group_norm_function,
    "instance_norm": instance_norm_function,
    "batch_norm": batch_norm_function,
    "embedding": embedding_function,
    "prelu": prelu,
}
"""Lowering by ATen name."""
