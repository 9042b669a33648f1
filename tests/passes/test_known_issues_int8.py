"""What went wrong between training, ONNX and the runtime in other tools, by the thread where users reported it.

TensorRT: NVIDIA/TensorRT, aimet: quic/aimet, ort: microsoft/onnxruntime, nncf: openvinotoolkit/nncf, TP:
VainF/Torch-Pruning. Networks are written anew.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_functions import eager
from attention_layers import Attention
from attention_nets import Block, Classifier
from family_nets import conv
from nets import randomise_bn
from onnx import numpy_helper
from torch import Tensor, nn

from secateur.compress.calibrate import calibrate
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.quantize import prepare
from secateur.errors import UserError
from secateur.export.lower import lower_program
from secateur.export.ort_session import open_session, run
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.prune import apply
from secateur.passes.quant.modules import FakeQuantize, QuantConv2d


class Residual(nn.Module):
    """Two convolutions with batch norm and a sum: by modules, or by functions on their parameters."""

    def __init__(self, functional: bool = False) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 6), conv(6, 6), nn.Linear(6, 3)
        self.functional = functional

    def layer(self, block: nn.Sequential, x: Tensor) -> Tensor:
        if not self.functional:
            return block(x)
        c, b = block[0], block[1]
        x = F.conv2d(x, c.weight, c.bias, c.stride, c.padding)
        return torch.relu(F.batch_norm(x, b.running_mean, b.running_var, b.weight, b.bias, False, 0.1, b.eps))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.stem, x)
        x = torch.add(x, self.layer(self.body, x)) if self.functional else x + self.layer(self.body, x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1) if self.functional else x.mean((2, 3)))


def images(batch: int = 16) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


def residual(functional: bool = False) -> Residual:
    torch.manual_seed(0)
    return randomise_bn(Residual(functional)).eval()


def quantised(program: Program, x: Tensor) -> Program:
    return calibrate(prepare(program, ORT_CPU.scheme)[0], [(x, torch.zeros(len(x)))]).eval()


def in_onnx(program: Program, *inputs: Tensor, literal: bool = False) -> np.ndarray:
    session = open_session(lower_program(program, ORT_CPU).model, literal=literal)
    names = [value.name for value in session.get_inputs()]
    return next(iter(run(session, {n: x.numpy() for n, x in zip(names, inputs, strict=True)}).values()))


def stored(program: Program) -> dict[str, np.ndarray]:
    graph = lower_program(program, ORT_CPU).model.graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def test_calls_of_functions_are_quantised_as_layers_are() -> None:
    """pytorch#109612, distiller#360: operations that are no modules are skipped in silence."""
    counts = []
    for functional in (False, True):
        program = quantised(capture(residual(functional), images(2)), images())
        modules = list(program.module().modules())
        counts.append([sum(isinstance(m, kind) for m in modules) for kind in (FakeQuantize, QuantConv2d)])
    assert counts[0] == counts[1] and counts[0][1] == 2


def test_the_file_holds_the_quantisers_of_the_simulation() -> None:
    """aimet#4088: torch and ONNX quantise different tensors. TensorRT#1568, #1106: and so they answer differently."""
    program = quantised(capture(residual(), images(2)), images())
    simulated = {name for name, m in program.module().named_modules() if isinstance(m, FakeQuantize)}
    written = {name.removesuffix(".zero_point") for name in stored(program) if name.endswith(".zero_point")}
    assert written == simulated and simulated
    with torch.no_grad():
        expected = program.module()(images()).numpy()
    got = in_onnx(program, images(), literal=True)
    assert (got.argmax(1) == expected.argmax(1)).all() and np.abs(got - expected).max() < 5e-3 * np.ptp(expected)


@pytest.mark.parametrize("outlier", [1.0, 300.0])
def test_no_weight_leaves_the_range_of_its_codes(outlier: float) -> None:
    """TensorRT#2527: weights outside of the range of int8 are clipped."""
    net = residual()
    with torch.no_grad():
        net.stem[0].weight[2, 1, 0, 0] *= outlier
    program = quantised(capture(net, images(2)), images())
    for module in program.module().modules():
        if isinstance(module, QuantConv2d):
            codes, scales = module.integer_weight()
            assert int(codes.abs().max()) <= 127
            step = scales.reshape(-1, 1, 1, 1)
            assert bool(((codes * step - module.weight).abs() <= step / 2 * 1.001).all())


def test_batch_norm_does_not_change_the_codes_of_the_weights() -> None:
    """ultralytics PR#26171: folding scales every channel and its range alike."""
    net = residual()
    plain = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    plain[0].load_state_dict({**plain[0].state_dict(), "weight": net.stem[0].weight})
    folded = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    folded[0].load_state_dict(plain[0].state_dict())
    with torch.no_grad():
        folded[1].weight.copy_(torch.tensor([0.3, 2.0, 1.0, 7.0, 0.01, 1.5]))
        folded[1].running_var.copy_(torch.tensor([1.0, 4.0, 0.2, 9.0, 0.5, 2.0]))
    first, second = (quantised(capture(n, images(2)), images()).module() for n in (plain, folded))
    apart = first.get_submodule("0").integer_weight()[0] - second.get_submodule("0").integer_weight()[0]
    assert int(apart.abs().max()) <= 1 and float((apart != 0).float().mean()) < 0.02  # ties of rounding


def test_no_batch_norm_is_left_that_training_could_move() -> None:
    """pytorch PR#114547, ort#26584, onnxsim#297: statistics that go on in QAT, or are folded twice."""
    program = quantised(capture(residual(), images(2)), images())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in program.module().modules())
    nodes = {node.op_type for node in lower_program(program, ORT_CPU).model.graph.node}
    assert "BatchNormalization" not in nodes
    before = program.module()(images())
    program.train()
    program.module()(images(32))
    program.eval()
    torch.testing.assert_close(program.module()(images()), before)


def test_ten_batches_are_as_good_as_all_for_statistics_after_pruning() -> None:
    """nncf#41, nncf#46: batch norm estimated anew on what is left of the network."""
    program = capture(residual(), images(2))
    smaller = apply(program, {"stem.0": [0, 2, 5]})
    data = [(torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.zeros(32)) for i in range(100)]
    few, all_ = (reestimate_batch_norm(smaller, data, samples=n).module() for n in (320, 3200))
    stale = smaller.module()
    for name in ("stem.1.running_var", "body.1.running_mean", "body.1.running_var"):
        far, near = ((m.get_buffer(name) - all_.get_buffer(name)).norm() for m in (stale, few))
        assert near < 0.1 * all_.get_buffer(name).norm() and near < 0.2 * far


def test_pruned_then_quantised_then_exported() -> None:
    """nncf#406, PR#449: a network that is pruned and quantised cannot be exported. aimet#809, TP#76: which order."""
    program = capture(residual(), images(2))
    final = quantised(apply(program, {"stem.0": [0, 2, 5]}), images())
    assert stored(final)["stem.0.weight"].shape[0] == 3
    with torch.no_grad():
        expected = final.module()(images()).numpy()
    np.testing.assert_allclose(in_onnx(final, images()), expected, atol=2e-2 * np.ptp(expected))


def test_a_quantised_network_is_not_pruned_by_accident() -> None:
    """TP#291: pruning after QAT fails somewhere inside."""
    program = quantised(capture(residual(), images(2)), images())
    stem = next(group for group in program.groups if group.name == "stem.0")
    assert stem.frozen is not None and stem.frozen.reason == "the network is quantised already"
    with pytest.raises(UserError, match="rank, plan and apply come before quantize"):
        apply(program, {"stem.0": [0]})


@pytest.mark.parametrize("pruned", [False, True])
def test_files_take_any_batch(pruned: bool) -> None:
    """rf-detr#949, TensorRT#842, #3405, ort#10463: the batch of the example ends up in Tile or Reshape constants."""
    torch.manual_seed(0)
    program = capture(Classifier(Block(Attention(eager))).eval(), torch.randn(2, 4, 4))
    if pruned:
        program = apply(program, {"blocks.0.attention.q": [1], "blocks.0.up": [0, 3]})
    for batch in (1, 2, 5):
        x = torch.randn(batch, 4, 4)
        with torch.no_grad():
            expected = program.module()(x).numpy()
        np.testing.assert_allclose(in_onnx(program, x), expected, atol=1e-5)
