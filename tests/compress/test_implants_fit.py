"""Least squares for implants against closed forms; and what follows an implanted program: healing, INT8, ONNX."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from nets import captured
from oracle import assert_close
from torch import Tensor, nn

from secateur import api
from secateur.compress.budget import Budget
from secateur.compress.heal.ridge import reconstruct
from secateur.compress.implants.apply import apply_and_fit
from secateur.compress.implants.fit import fit_implants
from secateur.compress.implants.select import with_implants
from secateur.compress.plan import Plan
from secateur.compress.planner.plan import plan
from secateur.compress.sensitivity.rank import rank
from secateur.export.export import export
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.fold import fold_batch_norm
from secateur.passes.implant import implant
from secateur.passes.implant_form import Implant
from secateur.passes.program import Program
from secateur.passes.verify import verify

SAMPLES = 48


def batches(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 16], torch.zeros(16, dtype=torch.long)) for i in range(0, len(x), 16)]


def program_of(first: nn.Module, *rest: nn.Module) -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(SAMPLES, 3, 7, 7, dtype=torch.float64)
    return capture(nn.Sequential(first, *rest).double().eval(), (x[:2],)), x


def run(program: Program, x: Tensor) -> Tensor:
    with torch.no_grad():
        return program.module()(x)


@pytest.mark.parametrize("form", ["pointwise", "low-rank", "separable", "tucker"])
def test_what_a_stand_in_can_compute_it_does(form: str) -> None:
    """Filters that are a 1×1 convolution and of rank 1, scaled away from what the first guess takes."""
    conv = nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():
        conv.weight[2:6] = 0.0
        conv.weight[2:6, :, 1, 1] = torch.randn(4, 1) @ torch.randn(1, 3)
    program, x = program_of(conv, nn.ReLU(), nn.Conv2d(8, 2, 1))
    made = implant(program, {"0": Implant((2, 3, 4, 5), form, None if form == "pointwise" else 1)}, init="zeros")
    assert float((run(made.program, x) - run(program, x)).abs().max()) > 1e-2
    if form == "tucker":  # keeps its first layers, of which the middle one is not zero here
        assert made.program.module().get_submodule("0_implant.1").weight.abs().max() > 0  # type: ignore[union-attr]
    fitted = fit_implants(program, made, batches(x), ridge=1e-10)
    assert_close(run(fitted, x), run(program, x), 1e-5, form)


@pytest.mark.parametrize("form", ["pointwise", "low-rank"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_fit_is_the_least_squares_solution(form: str, norm: bool) -> None:
    """Against a solve of all equations at all places; the offset ends up in the bias or in the batch norm."""
    conv = nn.Conv2d(3, 6, 3, padding=1, bias=not norm)
    between = [nn.BatchNorm2d(6)] if norm else []
    program, x = program_of(conv, *between, nn.Conv2d(6, 2, 1))
    rows = [1, 3, 4, 5]
    made = implant(program, {"0": Implant(tuple(rows), form, None if form == "pointwise" else 2)})
    fitted = fit_implants(program, made, batches(x), ridge=1e-12)
    with torch.no_grad():
        y = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)[:, rows].transpose(0, 1).flatten(1)
        patches = x if form == "pointwise" else nn.functional.unfold(x, 3, padding=1).reshape(SAMPLES, 27, 7, 7)
        inputs = torch.cat([patches.transpose(0, 1).flatten(1), torch.ones(1, y.shape[1], dtype=y.dtype)])
        best = torch.linalg.lstsq(inputs.T, y.T).solution.T @ inputs
        if form == "low-rank":
            mean = best.mean(1, keepdim=True)
            u, s, v = torch.linalg.svd(best - mean, full_matrices=False)
            best = (u[:, :2] * s[:2]) @ v[:2] + mean
        layers = [fitted.module().get_submodule(path) for path in made.stand_ins[0].layers]
        found = functools.reduce(lambda value, layer: layer(value), layers, x)
        if norm:
            dense = program.module().get_submodule("1").running_mean[rows]  # type: ignore[index]
            mine = fitted.module().get_submodule("1_implant").running_mean
            found = found + (dense - mine)[:, None, None]  # type: ignore[operator]
        found = found.transpose(0, 1).flatten(1)
        if form == "low-rank":
            assert_close(found, best, 1e-4, form)
        else:  # a tenth of the places is drawn, which costs about one per cent
            assert float((found - y).square().mean()) < 1.1 * float((best - y).square().mean())


@functools.cache
def planned(name: str, form: str = "pointwise") -> tuple[Program, Plan]:
    program = captured(name)
    table = rank(program, method="random", seed=2)
    cut = plan(program, table, target=ORT_CPU, budget=Budget(macs="60%"), by="gain")
    return program, with_implants(program, cut, table, ni_ratio=0.6, form=form, align=1)


def images(count: int = 32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return batches(torch.randn(count, 3, 8, 8, generator=generator))


@pytest.mark.parametrize("init", ["zeros", "center", "least-squares"])
def test_every_start_gives_a_sound_network_and_the_same_by_both_ways(init: str) -> None:
    program, made = planned("resnet_a")
    made, data = replace(made, implant_init=init), images(64)
    x = torch.cat([batch for batch, _ in data])
    got = apply_and_fit(program, made, data).program
    verify(got)
    assert bool(torch.isfinite(run(got, x)).all())
    if init == "least-squares":
        assert torch.equal(run(api.fit_implants(program, made, data), x), run(got, x))


@pytest.mark.parametrize("form", ["pointwise", "low-rank"])
def test_reconstruction_refits_implants_with_the_rest(form: str) -> None:
    program, made = planned("resnet_a", form)
    data = images(64)
    x = torch.cat([batch for batch, _ in data])
    start = api.apply(program, made)
    healed = reconstruct(program, start, made.keep(), data, implants=made.implants())
    old, new, wanted = run(start, x), run(healed, x), run(program, x)
    assert float((new - wanted).square().mean()) < 0.5 * float((old - wanted).square().mean())
    weights = [(start.module().get_parameter(n), p) for n, p in healed.module().named_parameters() if "implant" in n]
    assert any(not torch.equal(a, b) for a, b in weights)


@pytest.mark.parametrize("name", ["resnet_a", "resnet_b"])
def test_from_plan_to_integer_onnx(name: str, tmp_path: Path) -> None:
    program, made = planned(name)
    made.save(tmp_path / "plan.yaml")
    made = Plan.load(tmp_path / "plan.yaml")
    data = [(x, torch.arange(16) % 10) for x, _ in images()]
    smaller = api.fit_implants(program, made, data)
    smaller.save(tmp_path / "program")
    smaller = Program.load(tmp_path / "program")
    healed = api.heal(smaller, data, teacher=program, plan=made, epochs=1, lr=0.001)
    assert any("implant" in name for name, _ in healed.module().named_parameters())
    quantized = api.quantize(healed, data, target="ort-cpu")
    export(quantized, tmp_path / "out", target=ORT_CPU)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = ort.InferenceSession(str(tmp_path / "out/model.onnx"), options, providers=["CPUExecutionProvider"])
    x = data[0][0]
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert np.abs(got - run(quantized, x).numpy()).max() < 0.05 * np.abs(got).max()

    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    convolutions = sum(isinstance(m, nn.Conv2d) for m in healed.module().modules())
    assert "Conv" not in kinds and "FusedConv" not in kinds and "BatchNormalization" not in kinds
    # Shortcuts without weights may become convolutions too; batch norm never does: it is in the branches.
    assert kinds.count("QLinearConv") >= convolutions and "Gather" not in kinds and "ScatterND" not in kinds
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fold_batch_norm(healed).module().modules())
