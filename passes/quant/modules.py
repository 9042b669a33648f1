"""Layers of a quantised program: fake-quantisers of values, and layers with fake-quantised weights.

What they compute is what the exported file computes with its Q/DQ operators taken literally. One rounding is left
out: runtimes store the bias of an integer kernel as int32 in steps of `scale_input * scale_weight`. That is the step
of the integer accumulator itself, so it can move a code only where a value lies on a tie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import torch
from torch import Tensor, nn

from .fake_quantize import fake_quantize, quantize_codes
from .grid import Grid

_TINY = 2.0**-60
_BIAS_HEADROOM = 2.0**-14
_SCALE_OF_NOTHING = 2.0**-7


class FakeQuantize(nn.Module):
    """Puts a value on an integer grid, one scale for the whole tensor.

    Used at several nodes, it says that they share a grid. `scale` is NaN until a calibration sets it; `enabled` (not
    saved) turns the module into the identity.

    Args:
        grid: The integers.
        non_negative: The value cannot be negative: an unsigned grid then has zero point 0.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, grid: Grid, *, non_negative: bool = False) -> None:
        super().__init__()
        self.grid = grid
        self.non_negative = non_negative
        self.enabled = True
        self.register_buffer("scale", torch.tensor(float("nan"), dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor(0, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Rounds to the grid and back."""
        if not self.enabled:
            return x
        return fake_quantize(x, self.scale, self.zero_point, self.grid.low, self.grid.high)

    def codes(self, x: Tensor) -> Tensor:
        """Integer codes of `x`, int32."""
        return quantize_codes(x, self.scale, self.zero_point, self.grid.low, self.grid.high)

    @property
    def calibrated(self) -> bool:
        """Whether scale and zero point have been set."""
        return bool(torch.isfinite(self.scale))

    def set_range(self, low: float, high: float) -> None:
        """Chooses scale and zero point so that the grid covers `low … high`, and 0 exactly."""
        scale, zero_point = grid_of_range(self.grid, low, high, non_negative=self.non_negative)
        self.scale.fill_(scale)
        self.zero_point.fill_(zero_point)

    def spec(self) -> dict[str, Any]:
        """Constructor arguments as plain data."""
        return {"grid": asdict(self.grid), "non_negative": self.non_negative}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Makes the module that `spec` describes, not calibrated."""
        return cls(Grid(**spec["grid"]), non_negative=spec["non_negative"])

    def extra_repr(self) -> str:
        """The grid, for `print`."""
        sign = "S" if self.grid.signed else "U"
        return f"{sign}{self.grid.bits}, scale={float(self.scale):.4g}, zero_point={int(self.zero_point)}"


def grid_of_range(grid: Grid, low: float, high: float, *, non_negative: bool = False) -> tuple[float, int]:
    """Scale and zero point with which a grid covers `low … high`; 0.0 is always exactly on the grid.

    Args:
        grid: The integers.
        low: Smallest value to cover.
        high: Largest value to cover.
        non_negative: Values below 0 do not occur, so an unsigned grid spends no codes on them.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if non_negative and not grid.signed:
        low = 0.0
    if high - low < _TINY:
        # Nothing to cover. A tiny scale would make int32 biases of the consumer overflow.
        middle = (grid.high + 1) // 2 if grid.symmetric and not grid.signed and not non_negative else 0
        return _SCALE_OF_NOTHING, middle
    if grid.symmetric and not (non_negative and not grid.signed):
        zero_point = 0 if grid.signed else (grid.high + 1) // 2
        return max(-low, high) / (grid.high - zero_point), zero_point
    scale = (high - low) / (grid.high - grid.low)
    zero_point = round(grid.low - low / scale)
    return scale, min(max(zero_point, grid.low), grid.high)


class WeightFakeQuant(nn.Module):
    """Puts a weight on an integer grid; scales follow from the weight itself, in training and afterwards.

    Args:
        grid: The integers; symmetric.
        per_channel: One scale per output channel, else one for the tensor.
    """

    def __init__(self, grid: Grid, *, per_channel: bool = True) -> None:
        super().__init__()
        self.grid = grid
        self.per_channel = per_channel

    def scales(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """float32 scales [out channels], or a scalar: `max |weight| / high`.

        A channel whose weights are tiny beside its bias (a dead one, after batch norm was folded) gets a larger
        scale, so that the bias fits into int32 in steps of `scale_input * scale`.
        """
        magnitude = weight.detach().float().abs()
        peak = magnitude.flatten(1).amax(1) if self.per_channel else magnitude.amax()
        scale = peak / self.grid.high
        if bias is not None:
            size = bias.detach().float().abs()
            scale = torch.maximum(scale, (size if self.per_channel else size.amax()) * _BIAS_HEADROOM)
        return scale.clamp_min(_TINY)

    def forward(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weight rounded to the grid and back."""
        scale = self.scales(weight, bias)
        return fake_quantize(weight, scale, _zeros(scale), self.grid.low, self.grid.high, self._axis())

    def codes(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Integer codes (int8 up to 8 bits, else int32) and float32 scales."""
        scale = self.scales(weight, bias)
        codes = quantize_codes(weight.detach(), scale, _zeros(scale), self.grid.low, self.grid.high, self._axis())
        return codes.to(torch.int8 if self.grid.bits <= 8 else torch.int32), scale

    def _axis(self) -> int | None:
        return 0 if self.per_channel else None


def _zeros(scale: Tensor) -> Tensor:
    return torch.zeros_like(scale, dtype=torch.int32)


class _QuantLayer:
    """What quantised layers share: a float weight and bias, and the `weight_quant` that the weight goes through."""

    weight: Tensor
    bias: Tensor | None
    weight_quant: WeightFakeQuant

    def quantized_weight(self) -> Tensor:
        """The weight on its grid, differentiable."""
        return self.weight_quant(self.weight, self.bias)

    def integer_weight(self) -> tuple[Tensor, Tensor]:
        """Codes of the weight (int8 up to 8 bits) and scales: float32 [out channels], or a scalar."""
        return self.weight_quant.codes(self.weight, self.bias)

    def _quant_spec(self) -> dict[str, Any]:
        return {"grid": asdict(self.weight_quant.grid), "per_channel": self.weight_quant.per_channel}


def _weight_quant(spec: Mapping[str, Any]) -> WeightFakeQuant:
    return WeightFakeQuant(Grid(**spec["grid"]), per_channel=spec["per_channel"])


_CONV_OPTIONS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


class _QuantConv(_QuantLayer):
    """A convolution with fake-quantised weights; mixed into `nn.Conv1d/2d/3d`."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolves with the weight on its grid."""
        return self._conv_forward(input, self.quantized_weight(), self.bias)  # type: ignore[attr-defined]

    def spec(self) -> dict[str, Any]:
        """Constructor arguments as plain data."""
        options = {name: getattr(self, name) for name in _CONV_OPTIONS}
        return {**options, "bias": self.bias is not None, "weight_quant": self._quant_spec()}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Makes the layer that `spec` describes; its weights are arbitrary."""
        options = {name: _tuple(value) for name, value in spec.items() if name != "weight_quant"}
        layer = cls(**options)
        layer.weight_quant = _weight_quant(spec["weight_quant"])
        return layer

    @classmethod
    def from_float(cls, layer: nn.Module, grid: Grid, *, per_channel: bool) -> Self:
        """The quantised twin of a float convolution; shares its parameter objects."""
        options = {name: getattr(layer, name) for name in _CONV_OPTIONS}
        quant = {"grid": asdict(grid), "per_channel": per_channel}
        made = cls.from_spec({**options, "bias": layer.bias is not None, "weight_quant": quant})
        return _adopt(made, layer)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """`nn.Conv1d` with fake-quantised weights."""


class QuantConv2d(_QuantConv, nn.Conv2d):
    """`nn.Conv2d` with fake-quantised weights."""


class QuantConv3d(_QuantConv, nn.Conv3d):
    """`nn.Conv3d` with fake-quantised weights."""


class QuantLinear(_QuantLayer, nn.Linear):
    """`nn.Linear` with fake-quantised weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiplies with the weight on its grid."""
        return nn.functional.linear(input, self.quantized_weight(), self.bias)

    def spec(self) -> dict[str, Any]:
        """Constructor arguments as plain data."""
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "weight_quant": self._quant_spec(),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Makes the layer that `spec` describes; its weights are arbitrary."""
        layer = cls(spec["in_features"], spec["out_features"], bias=spec["bias"])
        layer.weight_quant = _weight_quant(spec["weight_quant"])
        return layer

    @classmethod
    def from_float(cls, layer: nn.Module, grid: Grid, *, per_channel: bool) -> Self:
        """The quantised twin of a float linear layer; shares its parameter objects."""
        quant = {"grid": asdict(grid), "per_channel": per_channel}
        options = {"in_features": layer.in_features, "out_features": layer.out_features}
        made = cls.from_spec({**options, "bias": layer.bias is not None, "weight_quant": quant})
        return _adopt(made, layer)


def _adopt(made: Any, layer: nn.Module) -> Any:
    """Gives `made` the parameters and the mode of `layer`."""
    made.weight, made.bias = layer.weight, layer.bias
    made.train(layer.training)
    return made


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


MODULES: dict[str, type[nn.Module]] = {
    "FakeQuantize": FakeQuantize,
    "QuantConv1d": QuantConv1d,
    "QuantConv2d": QuantConv2d,
    "QuantConv3d": QuantConv3d,
    "QuantLinear": QuantLinear,
}
"""Layer classes by type name, for the description and saving of programs."""
