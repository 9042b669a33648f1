"""U8 × S8 on processors without VNNI: two products are added in 16 bits that saturate, and answers change silently."""

import functools

import numpy as np
import pytest
import torch
from runs import secateur, tiny_recipe
from torch import nn

from secateur import sparsity, steps
from secateur.compress.quantize import quantize
from secateur.export.cpu import cpu_facts
from secateur.export.export import export
from secateur.export.lower import lower_program
from secateur.export.ort_session import open_session, run
from secateur.export.targets import ORT_CPU, ORT_CPU_AVX2, TARGETS, Target, lacking_instructions
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.tools import commands, doctor

OLD = {"cpu": "an older one", "cores": 4, "instruction_sets": ["avx2"]}
VNNI = ["avx2", "avx512f", "avx512_vnni"]

both = pytest.mark.parametrize("target", [ORT_CPU, ORT_CPU_AVX2], ids=lambda target: target.name)


def add_pairs(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What `vpmaddubsw` does with U8 [n] and S8 [n]: neighbouring products added, saturated to 16 bits: [n / 2]."""
    products = activations.astype(np.int64) * weights.astype(np.int64)
    return products.reshape(-1, 2).sum(1).clip(-(2**15), 2**15 - 1)


def extreme_net() -> nn.Module:
    """Weights at both ends of any grid, and activations that reach the end of theirs in every channel.

    The largest sum is 7 · 9: the steps of the result, 63 / 255, have no ties for rounding to differ in.
    """
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(7, 7, 1, bias=False), nn.ReLU(), nn.Conv2d(7, 16, 3, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(7)[:, :, None, None])
        net[2].weight.copy_(torch.randint(0, 2, net[2].weight.shape) * 2.0 - 1.0)
        net[2].weight[0], net[2].weight[1] = 1.0, -1.0
        net[2].weight[2, ::2] = 1.0
    return net.eval()


@both
def test_sums_of_two_products_saturate_on_eight_bits_and_never_on_seven(target):
    grid = target.scheme.weight
    activations = np.full(4, target.scheme.activation.high)
    weights = np.array([grid.high, grid.high, grid.low, grid.low])
    exact = (activations * weights).reshape(-1, 2).sum(1)
    assert np.array_equal(add_pairs(activations, weights), exact) == (target is ORT_CPU_AVX2)


@functools.cache
def quantised(target: Target) -> tuple[Program, torch.Tensor]:
    """The network on the target's grids, and images of zeros and ones."""
    x = torch.randint(0, 2, (4, 7, 6, 6), generator=torch.Generator().manual_seed(0)).float()
    x[0] = 1.0
    return quantize(capture(extreme_net(), (x[:2],)), [(x, torch.zeros(4))], scheme=target.scheme).program, x


@both
def test_extreme_weights_and_activations_give_the_simulated_codes(target):
    if lack := lacking_instructions(target, cpu_facts()["instruction_sets"]):
        pytest.skip(lack)
    program, x = quantised(target)
    nodes, module = {node.name: node for node in program.graph.nodes}, program.module()
    layer = module.get_submodule("2")
    codes, scales = layer.integer_weight()
    assert set(codes.unique().tolist()) == {target.scheme.weight.low, target.scheme.weight.high}
    entering = next(node for node in nodes.values() if node.target == "2").args[0]
    assert int(module.get_submodule(entering.target).codes(x).max()) == 255
    leaving = module.get_submodule(nodes["output"].args[0][0].target)
    session = open_session(lower_program(program, target).model)
    (found,) = run(session, {session.get_inputs()[0].name: x.numpy()}).values()
    sums = torch.nn.functional.conv2d(255 * x, codes.float()).clamp_min(0)  # they fit into single precision exactly
    expected = leaving.codes(sums * float(scales[0]) / 255)
    assert torch.equal(leaving.codes(torch.from_numpy(found)), expected) and int(expected.max()) == 255
    with torch.no_grad():
        assert torch.equal(leaving.codes(module(x)), expected)


@pytest.mark.parametrize(
    ("flags", "lacks"), [(VNNI, False), (["avx2", "avx_vnni"], False), (["avx2"], True), ([], True)]
)
def test_a_processor_without_vnni_is_told_which_target_to_take(flags, lacks):
    told = lacking_instructions(ORT_CPU, flags)
    assert ("saturate" in told and "take target ort-cpu-avx2" in told) == lacks == bool(told)
    assert ORT_CPU.without_them in TARGETS
    assert (lacking_instructions(ORT_CPU_AVX2, flags) == "") == ("avx2" in flags)


def test_quantize_check_and_doctor_said_nothing_of_saturation_on_such_a_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "cpu_facts", lambda: OLD)
    monkeypatch.setattr("secateur.export.cpu.cpu_facts", lambda: OLD)
    monkeypatch.setattr(doctor, "cpu_facts", lambda: OLD)
    saturates, asked = "integer sums may saturate", ("--set", "rank.method=magnitude", "--set", "heal.epochs=0")
    code, _, err = secateur("quantize", tiny_recipe(tmp_path), "--out", tmp_path / "run", *asked)
    assert code == 0 and saturates in " ".join(err.split()), err
    monkeypatch.setattr(sparsity, "cpu_facts", lambda: OLD)
    few = ("--option", "refit_samples=64", "--option", "stages=1", "--int8", "--out", tmp_path / "sparse")
    code, _, err = secateur("sparsify", tiny_recipe(tmp_path), *few)
    assert code == 0 and saturates in " ".join(err.split()), err
    for target in (ORT_CPU, ORT_CPU_AVX2):
        export(quantised(target)[0], tmp_path / target.name, target=target)
        assert (saturates in commands._lack(tmp_path / target.name)) == (target is ORT_CPU)
        assert any(saturates in lack for lack in doctor.lacks(target)) == (target is ORT_CPU)
