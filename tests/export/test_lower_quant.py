"""Quantised networks: taken literally, the ONNX form is the fake-quantised program; fused, it runs in integers."""

import dataclasses
import functools

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from nets import IMAGE_NETS, NETS, captured, rebatch
from onnx import numpy_helper
from torch import nn

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.errors import UnsupportedError, UserError
from secateur.export.lower import lower_program
from secateur.export.ort_kernels import kernel_report
from secateur.export.ort_session import open_session, run
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.quant.modules import FakeQuantize, QuantConv2d, QuantLinear

SCHEMES = {
    "float tail": ORT_CPU.scheme,
    "integer tail": dataclasses.replace(ORT_CPU.scheme, float_tail=False),
}


def quantised(net, x, scheme=ORT_CPU.scheme):
    return calibrated(capture(net, (x,)), x, scheme)


def calibrated(program, x, scheme=ORT_CPU.scheme):
    program, _ = prepare(program, scheme)
    return calibrate(program, [(x, torch.zeros(len(x)))]).eval()


@functools.cache
def case(name, tail):
    program = captured(name)
    x = rebatch(program.example_args, 16)[0]
    program = calibrated(program, x, SCHEMES[tail])
    with torch.no_grad():
        return program, lower_program(program, ORT_CPU), x, program.module()(x).numpy()


def outputs(model, x, **options):
    session = open_session(model, **options)
    return next(iter(run(session, {session.get_inputs()[0].name: x.numpy()}).values()))


every_net = pytest.mark.parametrize("name", IMAGE_NETS)
both_tails = pytest.mark.parametrize("tail", SCHEMES)


@every_net
@both_tails
def test_taken_literally_it_is_the_fake_quantised_program(name, tail):
    _, lowered, x, expected = case(name, tail)
    got = outputs(lowered.model, x, literal=True)
    spread = np.ptp(expected)
    error = np.abs(got - expected).max(axis=1) / spread
    # Both round the same numbers, summed in another order: a value on a tie may fall to the other side, in few samples.
    assert np.median(error) < 1e-5
    assert error.max() < 5e-3


@every_net
@both_tails
def test_fused_it_stays_within_steps_and_agrees(name, tail):
    _, lowered, x, expected = case(name, tail)
    got = outputs(lowered.model, x)
    assert np.abs(got - expected).max() / np.ptp(expected) < 2e-2
    top = np.sort(expected, axis=1)
    clear = top[:, -1] - top[:, -2] > 1e-2 * np.ptp(expected)
    assert clear.any() and (got.argmax(1) == expected.argmax(1))[clear].all()


@every_net
@both_tails
def test_all_convolutions_run_as_integer_kernels(name, tail, tmp_path):
    program, lowered, _, _ = case(name, tail)
    onnx.save(lowered.model, tmp_path / "model.onnx")
    report = kernel_report(tmp_path / "model.onnx")
    assert report.conv_share == 1.0 and report.float_convs == 0
    assert report.integer_convs >= sum(isinstance(m, QuantConv2d) for m in program.graph_module.modules())
    if tail == "integer tail":
        assert report.share == 1.0 and report.integer_matmuls > 0 and not report.float_nodes
    else:
        assert {f.reason for f in report.float_nodes} == {"its weights are not quantised"}


@every_net
def test_exported_codes_are_the_simulated_codes(name):
    program, lowered, _, _ = case(name, "integer tail")
    stored = {t.name: numpy_helper.to_array(t) for t in lowered.model.graph.initializer}
    for path, module in program.graph_module.named_modules():
        if isinstance(module, QuantConv2d | QuantLinear):
            codes, scales = module.integer_weight()
            assert stored[f"{path}.weight"].dtype == np.int8
            np.testing.assert_array_equal(stored[f"{path}.weight"], codes.numpy())
            np.testing.assert_array_equal(stored[f"{path}.weight_scale"], scales.numpy())
        elif isinstance(module, FakeQuantize) and f"{path}.scale" in stored:
            assert stored[f"{path}.scale"] == module.scale.numpy()
            assert stored[f"{path}.zero_point"] == module.zero_point.numpy()


def test_a_linear_bias_is_an_integer_in_steps_of_the_accumulator():
    program, lowered, _, _ = case("resnet_b", "integer tail")
    stored = {t.name: numpy_helper.to_array(t) for t in lowered.model.graph.initializer}
    linear = program.graph_module.get_submodule("linear")
    step = stored["linear.bias_scale"]
    assert stored["linear.bias"].dtype == np.int32
    assert (np.abs(stored["linear.bias"] * step - linear.bias.detach().numpy()) <= step / 2 * (1 + 1e-6)).all()


def test_the_shortcut_of_option_a_becomes_one_integer_convolution():
    lowered = case("resnet_a", "float tail")[1]
    assert len(lowered.rewrites) == 1 and "pad" in lowered.rewrites[0]
    kinds = {node.op_type for node in lowered.model.graph.node}
    assert "Pad" not in kinds and "Slice" not in kinds


class Shortcut(nn.Module):
    """A chain of slices and pads between two quantised values."""

    def __init__(self, chain):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.last, self.chain = nn.Conv2d(12, 4, 1), chain

    def forward(self, x):
        return self.last(F.relu(self.second(x) + self.chain(F.relu(self.first(x))))).mean((2, 3))


CHAINS = {
    "both sides": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3)), True),
    "one side": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 4)), True),
    "pad first": (lambda x: F.pad(x, (0, 0, 0, 0, 2, 2))[:, :, ::2, ::2], True),
    "fewer channels": (lambda x: F.pad(x[:, 1:7, ::2, ::2], (0, 0, 0, 0, 3, 3)), True),
    "shifted": (lambda x: F.pad(x[:, :, 1::2, ::2], (0, 0, 0, 0, 2, 2)), True),
    "spatial": (lambda x: F.pad(x[:, :, ::2, 2::2], (1, 0, 0, 0))[:, [*range(8), *range(4)]], False),
    "not zeros": (lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), value=0.3), False),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_shortcut_rewrite_is_exact_and_only_taken_where_it_is_one(chain):
    function, rewritten = CHAINS[chain]
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    program = quantised(Shortcut(function).eval(), x)
    lowered = lower_program(program, ORT_CPU)
    assert bool(lowered.rewrites) == rewritten
    with torch.no_grad():
        expected = program.module()(x).numpy()
    error = np.abs(outputs(lowered.model, x, literal=True) - expected) / np.ptp(expected)
    assert np.median(error) < 1e-5 and error.max() < 5e-3


def test_linear_layers_on_tokens_run_as_integer_matmuls(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(16, 5, 8)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6)).eval()
    program = quantised(net, x, SCHEMES["integer tail"])
    lowered = lower_program(program, ORT_CPU)
    onnx.save(lowered.model, tmp_path / "model.onnx")
    with torch.no_grad():
        expected = program.module()(x).numpy()
    np.testing.assert_allclose(outputs(lowered.model, x, literal=True), expected, atol=1e-5 * np.ptp(expected))
    assert kernel_report(tmp_path / "model.onnx").share == 1.0


def test_an_uncalibrated_program_is_refused():
    program, _ = prepare(captured("plain"), ORT_CPU.scheme)
    with pytest.raises(UserError, match="not calibrated"):
        lower_program(program, ORT_CPU)


def test_a_grid_that_onnx_lacks_is_refused():
    net, (x,) = NETS["plain"]()
    grid = dataclasses.replace(ORT_CPU.scheme.activation, bits=6)
    with pytest.raises(UnsupportedError, match="no ONNX form"):
        lower_program(quantised(net, x, dataclasses.replace(ORT_CPU.scheme, activation=grid)), ORT_CPU)


class CalledTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.a, self.head = nn.Conv2d(3, 4, 1), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.conv(x).relu().flatten(1)
        return self.head(torch.relu(self.a(torch.relu(self.a(x)))))


def test_a_linear_layer_that_is_called_twice_has_a_bias_for_each_call():
    x = torch.randn(64, 3, 2, 2)
    program = quantised(CalledTwice().eval(), x, SCHEMES["integer tail"])
    model = lower_program(program, ORT_CPU).model
    biases = [t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT32 and "bias" in t.name]
    assert len([name for name in biases if name.startswith("a")]) == 2
    assert len(set(biases)) == len(biases)
    with torch.no_grad():
        wanted = program.module()(x).numpy()
    error = np.abs(outputs(model, x, literal=True) - wanted).max(axis=1) / np.ptp(wanted)
    assert np.median(error) < 1e-5


class Tokens(nn.Module):
    """Linear layers on tokens; the batch size is written into the graph, or not."""

    def __init__(self, fixed):
        super().__init__()
        self.fixed, self.plain = fixed, nn.Linear(16, 16, bias=False)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        x = x.reshape(4, 9, 16) if self.fixed else x
        return (x + self.down(self.up(x).relu()) + self.plain(x)).mean(1)


@pytest.mark.parametrize("fixed", [True, False])
def test_linear_layers_on_tokens_run_in_integers_also_where_the_batch_is_fixed(fixed, tmp_path):
    """With all sizes known the runtime made float Gemms of them, and dequantised their weights in every run."""
    torch.manual_seed(0)
    program = quantised(Tokens(fixed).eval(), torch.randn(4, 9, 16))
    assert (program.static_batch is not None) == fixed
    model = lower_program(program, ORT_CPU).model
    open_session(model, optimised=tmp_path / "model.onnx")
    report = kernel_report(tmp_path / "model.onnx")
    assert (report.integer_matmuls, report.float_matmuls) == (3, 0), report
    x = torch.randn(4, 9, 16)
    with torch.no_grad():
        np.testing.assert_allclose(outputs(model, x), program.module()(x), atol=0.1)
