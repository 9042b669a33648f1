"""Lowering of pooling and resampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import fx

from .lower_context import Lowering, NoLowering, OpLowering, Value, spread


def _spatial(ctx: Lowering, x: Any, count: int) -> tuple[int, ...]:
    """Spatial sizes of an input with batch and channel axes.

    Raises:
        NoLowering: It has none, or they are dynamic.
    """
    fact = ctx.fact(x)
    if fact.rank != count + 2 or fact.shape[2:] != fact.other[2:]:
        raise NoLowering("pooling needs a batch axis and constant spatial sizes")
    return fact.shape[2:]


def global_average(ctx: Lowering, node: fx.Node, x: str, *, flat: bool) -> str:
    """GlobalAveragePool, the form with an integer kernel; with `flat` the spatial axes are dropped."""
    if not flat:
        return ctx.emit(node, "GlobalAveragePool", [x])
    return ctx.emit(node, "Flatten", [ctx.emit(node, "GlobalAveragePool", [x], part="pool")], axis=1)


def _window(a: SimpleNamespace, count: int) -> tuple[list[int], list[int], list[int], list[int]]:
    kernel = spread(a.kernel_size, count)
    stride = spread(a.stride, count) if a.stride else kernel
    return kernel, stride, spread(a.padding, count), spread(getattr(a, "dilation", 1), count)


def _ceil_mode(
    a: SimpleNamespace, sizes: Sequence[int], window: tuple[list[int], list[int], list[int], list[int]]
) -> int:
    """Whether ceil mode is asked for and matters.

    Raises:
        NoLowering: torch would drop a window that starts in the padding, which older ONNX versions keep.
    """
    if not a.ceil_mode:
        return 0
    matters = 0
    for size, kernel, stride, pad, dilation in zip(sizes, *window, strict=True):
        span = size + 2 * pad - dilation * (kernel - 1) - 1
        if span % stride == 0:
            continue
        matters = 1
        if -(-span // stride) * stride >= size + pad:
            raise NoLowering("ceil mode with a window that starts in the padding")
    return matters


def max_pool(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.max_pool{1,2,3}d`."""
    count = ctx.fact(a.self).rank - 2
    sizes = _spatial(ctx, a.self, count)
    window = _window(a, count)
    kernel, stride, padding, dilation = window
    return ctx.emit(
        node,
        "MaxPool",
        [ctx.value(a.self)],
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        dilations=dilation,
        ceil_mode=_ceil_mode(a, sizes, window),
    )


def max_pool_with_indices(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """The pair form, of which only the values are available."""
    return max_pool(ctx, node, a), None


def avg_pool(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.avg_pool{1,2,3}d`; one over the whole image becomes GlobalAveragePool."""
    count = ctx.fact(a.self).rank - 2
    sizes = _spatial(ctx, a.self, count)
    window = _window(a, count)
    kernel, stride, padding, _ = window
    if getattr(a, "divisor_override", None) is not None:
        raise NoLowering("average pooling with its own divisor")
    if _ceil_mode(a, sizes, window):
        raise NoLowering("average pooling in ceil mode")
    if tuple(kernel) == sizes and not any(padding):
        return global_average(ctx, node, ctx.value(a.self), flat=False)
    return ctx.emit(
        node,
        "AveragePool",
        [ctx.value(a.self)],
        kernel_shape=kernel,
        strides=stride,
        pads=padding * 2,
        count_include_pad=int(a.count_include_pad),
    )


def _adaptive_window(ctx: Lowering, a: SimpleNamespace) -> list[int] | None:
    """Window of an adaptive pooling, or None if it covers everything.

    Raises:
        NoLowering: The windows have different sizes.
    """
    count = ctx.fact(a.self).rank - 2
    wanted = spread(a.output_size, count)
    if all(size == 1 for size in wanted):
        return None
    sizes = _spatial(ctx, a.self, count)
    if any(size % want for size, want in zip(sizes, wanted, strict=True)):
        raise NoLowering(f"adaptive pooling from {list(sizes)} to {wanted} has windows of different sizes")
    return [size // want for size, want in zip(sizes, wanted, strict=True)]


def adaptive_avg_pool(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.adaptive_avg_pool{1,2,3}d` with windows of one size."""
    window = _adaptive_window(ctx, a)
    if window is None:
        return global_average(ctx, node, ctx.value(a.self), flat=False)
    return ctx.emit(node, "AveragePool", [ctx.value(a.self)], kernel_shape=window, strides=window)


def adaptive_max_pool(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.adaptive_max_pool{1,2,3}d` with windows of one size; the indices are not available."""
    window = _adaptive_window(ctx, a)
    if window is None:
        return ctx.emit(node, "GlobalMaxPool", [ctx.value(a.self)]), None
    return ctx.emit(node, "MaxPool", [ctx.value(a.self)], kernel_shape=window, strides=window), None


def upsample(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.upsample_nearest*`, `aten.upsample_linear1d`, `bilinear2d`, `trilinear3d`."""
    x = getattr(a, "input", None) or a.self
    count = ctx.fact(x).rank - 2
    fact = ctx.fact(node)
    if fact.shape[2:] != fact.other[2:]:
        raise NoLowering("resampling to a dynamic size")
    linear = hasattr(a, "align_corners")
    mode: dict[str, Any] = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if linear:
        transformation = "align_corners" if a.align_corners else "pytorch_half_pixel"
        mode = {"mode": "linear", "coordinate_transformation_mode": transformation}
    factors = getattr(a, "scale_factors", None)
    if factors:
        scales = ctx.constant(node, "scales", [1.0, 1.0, *factors], np.float32)
        return ctx.emit(node, "Resize", [ctx.value(x), "", scales], **mode)
    sizes = ctx.constant(node, "sizes", list(fact.shape[2:]))
    axes = list(range(2, 2 + count))
    return ctx.emit(node, "Resize", [ctx.value(x), "", "", sizes], axes=axes, **mode)


def pixel_shuffle(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.pixel_shuffle`."""
    if ctx.fact(a.self).rank != 4:
        raise NoLowering("pixel shuffle of other than four axes")
    return ctx.emit(node, "DepthToSpace", [ctx.value(a.self)], blocksize=a.upscale_factor, mode="CRD")


def pixel_unshuffle(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.pixel_unshuffle`: SpaceToDepth puts the block in front of the channels, torch behind them."""
    fact, r = ctx.fact(a.self), a.downscale_factor
    if fact.rank != 4 or fact.shape[1:] != fact.other[1:]:
        raise NoLowering("pixel unshuffle of other than four axes, or of dynamic sizes")
    channels, height, width = fact.shape[1:]
    blocks = ctx.constant(node, "blocks", [0, channels, height // r, r, width // r, r])
    split = ctx.emit(node, "Reshape", [ctx.value(a.self), blocks], part="split")
    moved = ctx.emit(node, "Transpose", [split], part="moved", perm=[0, 1, 3, 5, 2, 4])
    return ctx.emit(
        node, "Reshape", [moved, ctx.constant(node, "shape", [0, channels * r * r, height // r, width // r])]
    )


OPS: Mapping[str, OpLowering] = {
    **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), max_pool),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), max_pool_with_indices),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), avg_pool),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"), adaptive_avg_pool),
    **dict.fromkeys(("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"), adaptive_max_pool),
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), upsample),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), upsample),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
}
"""Lowering by ATen name."""
