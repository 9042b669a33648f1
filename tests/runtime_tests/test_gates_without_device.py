"""An artifact for a GPU on a machine without one: numbers are judged on the CPU, the rest is skipped and said."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import gate_artifacts
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.errors import EnvironmentLacksError, ExitCode
from secateur.export.export import export
from secateur.export.manifest import describe_files, read_manifest, write_manifest
from secateur.export.targets import TARGETS
from secateur.export.tensorrt.settings import EngineSettings
from secateur.factory import DataSpec
from secateur.gates import AccuracyGate, CheckFile, KernelGate, LatencyGate, LegalityGate, ParityGate, SizeGate
from secateur.passes.capture import capture
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.subject import Subject
from secateur.verdict import GateResult, Verdict

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
HAS_RTX = import_module("importlib.util").find_spec("tensorrt_rtx") is not None


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """An artifact for TensorRT-RTX, with the test data and its factory beside it; an engine where the library is."""
    folder = tmp_path_factory.mktemp("device")
    net = gate_artifacts.network()
    x, y = gate_artifacts.samples(net)
    dense = capture(net, (x[:2],))
    prepared, _ = prepare(dense, TARGETS["tensorrt-rtx"].scheme)
    quantised = calibrate(prepared, [(x, y)]).eval()
    settings = EngineSettings(capabilities=("8.6",))
    export(quantised, folder / "out", target="tensorrt-rtx", baseline=dense, engine=settings)
    torch.save((x, y), folder / "test.pt")
    (folder / "data.py").write_text(gate_artifacts.DATA)
    return folder / "out"


@pytest.fixture
def out(original, tmp_path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "out"))


def results(name, gate, out, original):
    data = DataSpec(factory=f"{original.parent}/data.py:loaders", args={"folder": str(original.parent)})
    judge = Judge(name)
    test = getattr(import_module(f"secateur.runtime_tests.test_{name}"), f"test_{name}")
    try:
        test(gate, Subject(out, CheckFile(data=data), Path()), judge)
    except pytest.skip.Exception as skipped:
        assert "not verified on device" in str(skipped)
    return {result.check: result for result in judge.results}


def test_accuracy_is_judged_on_the_cpu_and_says_so(out, original):
    found = results("accuracy", AccuracyGate(max_drop=3, min=90), out, original)
    assert [result.state for result in found.values()] == ["passed", "passed"]
    assert "on the CPU, not verified on device" in found["top1"].text


def test_parity_compares_the_same_file_on_the_cpu(out, original):
    found = results("parity", ParityGate(), out, original)
    assert found["agreement"].state == "passed" and "on the CPU" in found["agreement"].text
    assert found["logit error"].state == "skipped"
    assert found["logit error, literal"].state == "passed"


def test_parity_fails_for_another_network(out, original):
    model = onnx.load(str(out / "model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("head.weight"):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, out / "model.onnx")
    assert results("parity", ParityGate(), out, original)["agreement"].state == "failed"


def test_latency_is_skipped_visibly(out, original):
    found = results("latency", LatencyGate(max="50%", batches=(1, 8)), out, original)
    assert {result.state for result in found.values()} == {"skipped"} and found.keys() == {"batch 1", "batch 8"}
    assert all("no CUDA device" in result.text and not result.details for result in found.values())


def test_kernels_and_size_are_those_of_the_engine(out, original):
    (found,) = results("kernels", KernelGate(), out, original).values()
    assert found.state == "passed" and ("build log of the engine" if HAS_RTX else "no engine") in found.text
    sizes = results("size", SizeGate(max="90%"), out, original)
    assert ("model.plan" in sizes) == HAS_RTX and sizes["model.onnx"].state == "passed"


def test_legality_looks_at_the_network_and_at_its_engine(out, original):
    found = results("legality", LegalityGate(), out, original)
    assert found["illegal for TensorRT"].state == "passed"
    assert found["engines that are stale or foreign"].state == ("passed" if HAS_RTX else "skipped")


def test_an_unsigned_grid_is_illegal(out, original):
    model = onnx.load(str(out / "model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".zero_point") and tensor.name.startswith("quantizers"):
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(0, np.uint8), tensor.name))
    onnx.save(model, out / "model.onnx")
    found = results("legality", LegalityGate(), out, original)["illegal for TensorRT"]
    assert found.state == "failed" and "unsigned" in found.text


@pytest.mark.skipif(not HAS_RTX, reason="TensorRT-RTX is not installed: pip install 'secateur[tensorrt-rtx]'")
def test_a_stale_engine_fails(out, original):
    model = onnx.load(str(out / "model.onnx"))
    model.doc_string = "changed"
    onnx.save(model, out / "model.onnx")
    write_manifest(out, {**read_manifest(out), "files": describe_files(out)})
    found = results("legality", LegalityGate(), out, original)["engines that are stale or foreign"]
    assert found.state == "failed" and "stale" in found.text


SKIPPED = GateResult("latency", "batch 1", "skipped", text="not verified on device")
PASSED = GateResult("size", "model.onnx", "passed", 1.0, 2.0, unit="kB")


def test_the_verdict_says_that_it_is_not_verified_and_a_flag_makes_it_an_error():
    verdict = Verdict("out", (PASSED, SKIPPED), unverified="not verified on device: there is no CUDA device here")
    assert verdict.passed and verdict.exit_code is ExitCode.OK
    assert verdict.heading == "passed, not verified on device"
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert json.loads(verdict.to_json())["unverified"]
    with pytest.raises(EnvironmentLacksError, match="not verified on its device") as caught:
        verdict.require_device()
    assert caught.value.code is ExitCode.ENVIRONMENT


def test_a_device_that_was_there_or_a_broken_limit_is_another_matter():
    replace(Verdict("out", (PASSED,))).require_device()
    broken = Verdict("out", (GateResult("size", "x", "failed", 3.0, 2.0), SKIPPED), unverified="not verified")
    broken.require_device()  # exits with 3, as a broken limit does
    assert broken.exit_code is ExitCode.GATE
    assert not Verdict("out", (SKIPPED,), unverified="x").passed  # nothing was looked at


@pytest.mark.usefixtures("warm_checks")
def test_the_command_line_exits_with_5(original, capsys):
    from runs import secateur

    gates = original.parent / "gates.yaml"
    gates.write_text(f"data: {{factory: '{original.parent}/data.py:loaders', args: {{folder: '{original.parent}'}}}}\n")
    code, printed, _ = secateur("check", str(original), "--gates", str(gates), "--json")
    found = json.loads(printed)
    assert code == ExitCode.OK and found["passed"] and "not verified on device" in found["unverified"]
    code, _, err = secateur("check", str(original), "--gates", str(gates), "--json", "--require-device")
    assert code == ExitCode.ENVIRONMENT and "not verified on its device" in err and "Traceback" not in err
