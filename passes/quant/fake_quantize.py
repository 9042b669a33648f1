"""Fake quantisation: rounding to an integer grid and back, in float32, exactly as ONNX defines it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def quantize_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None = None
) -> Tensor:
    """Integer codes of `x`: ONNX `QuantizeLinear`, `clamp(round_half_even(x / scale) + zero_point, low, high)`.

    Args:
        x: Any shape; computed in float32.
        scale: float32 scalar, or one value per index of `axis`.
        zero_point: int32, shape of `scale`.
        low: Smallest code.
        high: Largest code.
        axis: Axis along which `scale` varies; None for one scale.

    Returns:
        int32 tensor of the shape of `x`.
    """
    scale, zero_point = _along(scale, x.ndim, axis), _along(zero_point, x.ndim, axis)
    # A division, not a product with the inverse: the two differ at ties, and then codes differ from the runtime's.
    return x.float().div(scale).round_().add_(zero_point).clamp_(low, high).to(torch.int32)


def dequantize_codes(codes: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """Values of integer codes: ONNX `DequantizeLinear`, `(codes - zero_point) * scale` in float32."""
    scale, zero_point = _along(scale, codes.ndim, axis), _along(zero_point, codes.ndim, axis)
    return (codes - zero_point).float().mul_(scale)


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, axis: int | None = None) -> Tensor:
    """Rounds `x` to the grid and back: `dequantize_codes(quantize_codes(x))` in one differentiable step.

    The gradient passes straight through where `x` lies on the grid's range and is zero where `x` was clamped (Bengio
    et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877). Scale and zero point get none.

    Args:
        x: Any shape and floating dtype. The result has its dtype; the arithmetic is float32.
        scale: float32 scalar, or one value per index of `axis`.
        zero_point: int32, shape of `scale`.
        low: Smallest code.
        high: Largest code.
        axis: Axis along which `scale` varies; None for one scale.
    """
    return _FakeQuantize.apply(x, _along(scale, x.ndim, axis), _along(zero_point, x.ndim, axis), low, high)


class _FakeQuantize(torch.autograd.Function):
    """Straight-through rounding; saves one byte per element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
        codes = x.float().div(scale).round_().add_(zero_point)
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward((codes >= low) & (codes <= high))
        return codes.clamp_(low, high).sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grad_outputs[0] * inside, None, None, None, None


def _along(value: Tensor, rank: int, axis: int | None) -> Tensor:
    """A per-channel vector shaped so that it broadcasts along `axis`; scalars stay as they are."""
    if axis is None or value.ndim == 0:
        return value
    shape = [1] * rank
    shape[axis] = -1
    return value.reshape(shape)
