"""Fake quantisation against integer arithmetic in numpy and the definition of ONNX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur.passes.quant.fake_quantize import dequantize_codes, fake_quantize, quantize_codes
from secateur.passes.quant.grid import Grid
from secateur.passes.quant.modules import (
    MODULES,
    FakeQuantize,
    QuantConv1d,
    QuantConv2d,
    QuantConv3d,
    QuantLinear,
    WeightFakeQuant,
    grid_of_range,
)

U8 = Grid(signed=False, symmetric=False)
S8 = Grid(signed=True, symmetric=True, narrow=True)
GRIDS = [U8, S8, Grid(signed=False, symmetric=True), Grid(bits=4, signed=False, symmetric=False), Grid(bits=4)]


def reference(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, low: int, high: int) -> np.ndarray:
    """QuantizeLinear by its definition: float32 division, ties to even, saturation."""
    ratio = (x.astype(np.float32) / scale.astype(np.float32)).astype(np.float32)
    return np.clip(np.rint(ratio).astype(np.int64) + zero_point, low, high)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(GRIDS),
    st.floats(2.0**-12, 8.0, width=32),
    st.integers(0, 255),
)
def test_codes_and_values_are_those_of_onnx(seed: int, grid: Grid, scale: float, zero: int) -> None:
    zero = min(max(zero + grid.low, grid.low), grid.high)
    x = (np.random.default_rng(seed).standard_normal(257) * scale * 60).astype(np.float32)
    s, z = torch.tensor(scale, dtype=torch.float32), torch.tensor(zero, dtype=torch.int32)
    wanted = reference(x, s.numpy(), z.numpy(), grid.low, grid.high)
    codes = quantize_codes(torch.from_numpy(x), s, z, grid.low, grid.high)
    assert np.array_equal(codes.numpy(), wanted)
    values = fake_quantize(torch.from_numpy(x), s, z, grid.low, grid.high)
    assert np.array_equal(values.numpy(), ((wanted - zero).astype(np.float32) * s.numpy()).astype(np.float32))
    assert torch.equal(values, dequantize_codes(codes, s, z))


@pytest.mark.parametrize("scale", [0.5, 0.1, 1 / 3])
def test_ties_go_to_even(scale: float) -> None:
    s = np.float32(scale)
    x = (np.arange(-8, 9, dtype=np.float32) + np.float32(0.5)) * s
    zero = torch.tensor(0, dtype=torch.int32)
    codes = quantize_codes(torch.from_numpy(x), torch.tensor(s), zero, -128, 127).numpy()
    assert np.array_equal(codes, reference(x, s, np.int32(0), -128, 127))
    if scale == 0.5:
        assert np.array_equal(codes, np.rint(np.arange(-8, 9) + 0.5))


def test_quantising_twice_changes_nothing() -> None:
    s, z = torch.tensor(0.0137), torch.tensor(93, dtype=torch.int32)
    once = fake_quantize(torch.randn(10_000), s, z, 0, 255)
    assert torch.equal(fake_quantize(once, s, z, 0, 255), once)


def test_gradient_is_straight_through_inside_and_zero_outside() -> None:
    # Codes 0..3 with zero point 1 are the values -1, 0, 1, 2; halves beyond the ends still round inside.
    x = torch.tensor([-1.6, -1.4, 0.3, 2.4, 2.6], requires_grad=True)
    s, z = torch.tensor(1.0), torch.tensor(1, dtype=torch.int32)
    y = fake_quantize(x, s, z, 0, 3)
    assert y.tolist() == [-1.0, -1.0, 0.0, 2.0, 2.0]
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert x.grad is not None and x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]


def test_bf16_is_rounded_in_float32() -> None:
    x = torch.randn(1000).bfloat16()
    s, z = torch.tensor(0.02), torch.tensor(128, dtype=torch.int32)
    y = fake_quantize(x, s, z, 0, 255)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, fake_quantize(x.float(), s, z, 0, 255).bfloat16())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("bounds", [(-1.0, 3.0), (0.0, 3.0), (-3.0, 0.0), (0.5, 2.0), (-2e-4, 1e-4), (0.0, 0.0)])
def test_a_grid_covers_its_range_and_holds_zero(grid: Grid, bounds: tuple[float, float]) -> None:
    scale, zero = grid_of_range(grid, *bounds)
    assert scale > 0 and grid.low <= zero <= grid.high
    lowest, highest = (grid.low - zero) * scale, (grid.high - zero) * scale
    slack = scale * 0.5001 if not grid.symmetric else 1e-6 * scale * 255
    assert lowest <= min(bounds[0], 0.0) + slack and highest >= max(bounds[1], 0.0) - slack


def test_non_negative_values_waste_no_codes() -> None:
    for grid in (U8, Grid(signed=False, symmetric=True)):
        quantizer = FakeQuantize(grid, non_negative=True)
        quantizer.set_range(-0.1, 2.55)
        assert int(quantizer.zero_point) == 0
        assert float(quantizer.scale) == pytest.approx(0.01)


@pytest.mark.parametrize("per_channel", [True, False])
def test_weight_codes_are_what_is_simulated(per_channel: bool) -> None:
    torch.manual_seed(0)
    layer = QuantConv2d.from_float(nn.Conv2d(5, 7, 3), S8, per_channel=per_channel)
    codes, scales = layer.integer_weight()
    assert codes.dtype is torch.int8
    shaped = scales.reshape(-1, 1, 1, 1)
    assert torch.equal(codes.float() * shaped, layer.quantized_weight())
    assert float((codes.float() * shaped - layer.weight.detach()).abs().max()) <= float(scales.max()) / 2 * 1.0001
    peaks = codes.abs().flatten(1).amax(1)
    assert bool((peaks == 127).all()) if per_channel else int(peaks.max()) == 127
    wanted = layer.weight.detach().abs().flatten(1).amax(1) / 127
    torch.testing.assert_close(scales, wanted if per_channel else wanted.amax())


def test_dead_channels_leave_room_for_their_bias() -> None:
    weight, bias = torch.randn(3, 4), torch.tensor([0.1, 2.0, 0.0])
    weight[1:] = 0.0
    codes, scales = WeightFakeQuant(S8).codes(weight, bias)
    assert not codes[1:].any()
    smallest_input_scale = 1e-5
    assert float((bias / (scales * smallest_input_scale)).abs().max()) < 2**31


def _layers() -> list[tuple[nn.Module, type, tuple[int, ...]]]:
    return [
        (nn.Conv1d(4, 6, 3, padding=1, groups=2), QuantConv1d, (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, stride=2, padding="valid", bias=False), QuantConv2d, (2, 4, 9, 9)),
        (nn.Conv3d(2, 3, (1, 2, 3), dilation=(1, 2, 1)), QuantConv3d, (2, 2, 5, 5, 5)),
        (nn.Linear(4, 3), QuantLinear, (2, 7, 4)),
    ]


@pytest.mark.parametrize("index", range(4))
def test_layers_compute_with_the_rounded_weight_and_survive_their_spec(index: int) -> None:
    torch.manual_seed(index)
    layer, kind, shape = _layers()[index]
    made = kind.from_float(layer, S8, per_channel=True)
    x = torch.randn(shape)
    codes, scales = made.integer_weight()
    rounded = codes.float() * scales.reshape(-1, *[1] * (codes.ndim - 1))
    wanted = torch.func.functional_call(layer, {"weight": rounded}, x)
    torch.testing.assert_close(made(x), wanted)
    again = MODULES[kind.__name__].from_spec(made.spec())  # type: ignore[attr-defined]
    again.load_state_dict(made.state_dict())
    assert torch.equal(again(x), made(x)) and again.spec() == made.spec()


def test_a_quantiser_is_not_calibrated_until_told() -> None:
    quantizer = FakeQuantize(U8)
    assert not quantizer.calibrated
    quantizer.set_range(-1.0, 1.0)
    assert quantizer.calibrated
    again = FakeQuantize.from_spec(quantizer.spec())
    again.load_state_dict(quantizer.state_dict())
    x = torch.randn(100)
    assert torch.equal(again(x), quantizer(x))
    codes = quantizer.codes(x)
    assert torch.equal((codes - quantizer.zero_point).float() * quantizer.scale, quantizer(x))
