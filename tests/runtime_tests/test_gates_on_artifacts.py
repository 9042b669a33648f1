"""Every gate passes and fails on a real artifact for the reason that it is there for."""

import shutil
from importlib import import_module
from pathlib import Path

import gate_artifacts
import pytest

from secateur.errors import UserError
from secateur.factory import DataSpec
from secateur.gates import AccuracyGate, CheckFile, KernelGate, LatencyGate, LegalityGate, ParityGate, SizeGate
from secateur.runtime_tests.judge import Judge, sentence
from secateur.runtime_tests.subject import Subject

FAST = {"seconds": 0.02, "batches": (1, 3)}


@pytest.fixture(scope="session")
def original(tmp_path_factory) -> Path:
    return gate_artifacts.write_artifact(tmp_path_factory.mktemp("gates") / "artifact")


@pytest.fixture
def out(original, tmp_path) -> Path:
    """A copy of the artifact that a test may spoil."""
    return Path(shutil.copytree(original, tmp_path / "out"))


def subject(out: Path, original: Path, **check) -> Subject:
    data = DataSpec(factory=f"{original.parent}/data.py:loaders", args={"folder": str(original.parent)})
    return Subject(out, CheckFile(**{"data": data, **check}), Path())


def results(name: str, gate, under_test: Subject) -> dict:
    """Runs the gate of this name as the suite does."""
    judge = Judge(name)
    getattr(import_module(f"secateur.runtime_tests.test_{name}"), f"test_{name}")(gate, under_test, judge)
    assert all(sentence(result) for result in judge.results)
    return {result.check: result for result in judge.results}


def states(found: dict) -> list[str]:
    return [result.state for result in found.values()]


# accuracy


def test_accuracy_is_that_of_the_artifact_and_of_the_baseline(out, original):
    found = results("accuracy", AccuracyGate(max_drop=2, min=90), subject(out, original))
    assert states(found) == ["passed", "passed"]
    assert found["drop"].details["dense"] == 1.0  # the labels are what the dense network says
    assert found["drop"].details["samples"] == 256
    assert found["top1"].measured == pytest.approx(100 * found["top1"].details["model"])
    assert found["drop"].measured == pytest.approx(100 - found["top1"].measured)


def test_accuracy_fails_for_another_network(out, original):
    gate_artifacts.int8_onnx(gate_artifacts.network(seed=3), out / "model.onnx")
    found = results("accuracy", AccuracyGate(max_drop=2, min=90), subject(out, original))
    assert states(found) == ["failed", "failed"]
    drop = found["drop"]
    assert drop.measured == pytest.approx(100 * (drop.details["lost"] - drop.details["gained"]) / 256)
    assert drop.details["std_error"] > 0


def test_a_drop_without_baseline_fails_but_a_minimum_can_still_be_judged(out, original):
    (out / "dense.onnx").unlink()
    found = results("accuracy", AccuracyGate(max_drop=2, min=90), subject(out, original))
    assert states(found) == ["passed", "failed"]
    assert "no dense.onnx" in found["drop"].text


def test_without_data_a_limit_is_an_error_and_a_measurement_a_remark(out, original):
    with pytest.raises(UserError, match="no test data"):
        results("accuracy", AccuracyGate(min=1), subject(out, original, data=None))
    found = results("accuracy", AccuracyGate(), subject(out, original, data=None))
    assert states(found) == ["measured"]
    assert "no test data" in found["metric"].text


def test_the_metric_may_be_the_users_own(out, original, tmp_path):
    (tmp_path / "metrics.py").write_text(
        "def half(output, target): return 0.5 + 0 * target\n"
        "def scalar(output, target): return (output.argmax(1) == target).float().mean()\n"
    )
    under_test = subject(out, original, metric=f"{tmp_path}/metrics.py:half")
    assert results("accuracy", AccuracyGate(), under_test)["drop"].measured == 0.0
    with pytest.raises(UserError, match="one score a sample"):
        results("accuracy", AccuracyGate(), subject(out, original, metric=f"{tmp_path}/metrics.py:scalar"))


# parity


def test_parity_with_the_program_passes(out, original):
    found = results("parity", ParityGate(), subject(out, original))
    assert states(found) == ["passed"] * 3
    assert found["agreement"].details["samples"] == 256
    assert 0 < found["logit error"].measured < 0.05


def test_parity_looks_at_no_more_batches_than_asked(out, original):
    found = results("parity", ParityGate(samples=40), subject(out, original))
    assert found["agreement"].details["samples"] == 64


def test_parity_fails_for_another_program(out, original):
    other = gate_artifacts.write_artifact(out.parent / "other", seed=3)
    shutil.rmtree(out / "program")
    shutil.copytree(other / "program", out / "program")
    found = results("parity", ParityGate(), subject(out, original))
    assert states(found) == ["failed"] * 3


def test_parity_without_program_or_data_is_an_error(out, original):
    with pytest.raises(UserError, match="no test data"):
        results("parity", ParityGate(), subject(out, original, data=None))
    shutil.rmtree(out / "program")
    with pytest.raises(UserError, match="no program to compare"):
        results("parity", ParityGate(), subject(out, original))


# latency


def test_latency_is_judged_at_every_batch_against_the_baseline(out, original):
    found = results("latency", LatencyGate(max="5000%", **FAST), subject(out, original))
    assert states(found) == ["passed", "passed"]
    for batch in (1, 3):
        details = found[f"batch {batch}"].details
        low, high = details["ratio_interval"]
        assert low <= details["ratio"] <= high
        assert found[f"batch {batch}"].measured == pytest.approx(100 * details["ratio"])
        assert details["model"] == details["model_timing"]["median"] < 1.0
        assert details["dense"] > 0
    assert states(results("latency", LatencyGate(max="1%", **FAST), subject(out, original))) == ["failed"] * 2


def test_a_limit_in_time_holds_at_the_first_batch(out, original):
    found = results("latency", LatencyGate(max="1us", **FAST), subject(out, original))
    assert states(found) == ["failed", "measured"]
    found = results("latency", LatencyGate(max="10s", **FAST), subject(out, original))
    assert states(found) == ["passed", "measured"]
    assert found["batch 1"].limit == 10_000


def test_latency_without_baseline_fails_a_share_but_not_a_time(out, original):
    (out / "dense.onnx").unlink()
    found = results("latency", LatencyGate(max="500%", **FAST), subject(out, original))
    assert states(found) == ["failed"] * 2
    assert "no dense.onnx" in found["batch 1"].text
    assert results("latency", LatencyGate(max="10s", **FAST), subject(out, original))["batch 1"].passed


# size


@pytest.mark.parametrize(
    ("limit", "state"),
    [("100kB", "passed"), ("1kB", "failed"), ("60%", "passed"), ("10%", "failed"), (None, "measured")],
)
def test_size(out, original, limit, state):
    found = results("size", SizeGate(max=limit), subject(out, original))["model.onnx"]
    model, dense = (out / "model.onnx").stat().st_size, (out / "dense.onnx").stat().st_size
    assert found.state == state
    assert found.details == {"model": model, "dense": dense}
    assert found.measured == pytest.approx(100 * model / dense if limit and "%" in limit else model / 1000)


def test_a_share_of_no_baseline_fails(out, original):
    (out / "dense.onnx").unlink()
    assert states(results("size", SizeGate(max="60%"), subject(out, original))) == ["failed"]


# kernels


def test_convolutions_run_as_integer_kernels(out, original):
    found = results("kernels", KernelGate(), subject(out, original))["integer convolutions"]
    assert (found.state, found.details["integer"], found.details["total"]) == ("passed", 2, 2)


def test_a_float_model_fails_and_its_layers_are_named(out, original):
    shutil.copy(out / "dense.onnx", out / "model.onnx")
    found = results("kernels", KernelGate(), subject(out, original))["integer convolutions"]
    assert (found.state, found.measured) == ("failed", 0.0)
    assert {"conv1", "conv2"} <= {node["name"] for node in found.details["float_nodes"]}
    assert results("kernels", KernelGate(min_integer_share=0.0), subject(out, original))["integer convolutions"].passed


# legality


def test_untouched_files_are_legal(out, original):
    found = results("legality", LegalityGate(), subject(out, original))
    assert states(found) == ["passed"] * 3


def test_a_flipped_bit_is_found(out, original):
    content = bytearray((out / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (out / "model.onnx").write_bytes(content)
    found = results("legality", LegalityGate(), subject(out, original))["files that differ"]
    assert found.state == "failed"
    assert "model.onnx: another sha256" in found.text


def test_missing_resized_and_unlisted_files_are_found(out, original):
    (out / "dense.onnx").unlink()
    (out / "program" / "graph.json").write_text("{}")
    (out / "extra.bin").write_text("?")
    found = results("legality", LegalityGate(), subject(out, original))["files that differ"]
    assert (found.state, found.measured) == ("failed", 2)
    assert "dense.onnx: missing" in found.text
    assert "graph.json: 2 bytes" in found.text
    assert "not in the manifest: extra.bin" in found.text


def test_a_model_that_is_not_onnx_fails_even_if_the_manifest_knows_it(out, original):
    (out / "model.onnx").write_bytes(b"no model at all")
    gate_artifacts.seal(out)
    found = results("legality", LegalityGate(), subject(out, original))
    assert found["files that differ"].passed
    assert found["errors in model.onnx"].state == "failed"
    with pytest.raises(UserError, match="does not load the model"):
        results("accuracy", AccuracyGate(min=1), subject(out, original))


# what goes in


def test_a_batch_that_the_model_does_not_take_is_named(out, original, tmp_path):
    (tmp_path / "odd.py").write_text(
        "import torch\n"
        "def pair(x): b = [(x, torch.zeros(2))]; return {'train': b, 'test': b}\n"
        "def two(): return pair((torch.zeros(2, 3, 12, 12), torch.zeros(2)))\n"
        "def wide(): return pair(torch.zeros(2, 5, 12, 12))\n"
        "def none(): return {'train': [], 'test': []}\n"
    )
    for factory, said in (("two", "2 input tensors"), ("wide", "rejects a batch"), ("none", "no batch")):
        under_test = subject(out, original, data=DataSpec(factory=f"{tmp_path}/odd.py:{factory}"))
        with pytest.raises(UserError, match=said):
            results("accuracy", AccuracyGate(), under_test)


def test_an_artifact_without_manifest_or_model_is_an_error(out, original):
    (out / "model.onnx").unlink()
    with pytest.raises(UserError, match="no model"):
        results("size", SizeGate(), subject(out, original))
    (out / "manifest.json").unlink()
    with pytest.raises(UserError, match="not an artifact"):
        results("size", SizeGate(), subject(out, original))
