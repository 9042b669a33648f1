"""`check` runs the whole suite in a process of its own and brings back a complete verdict."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import gate_artifacts
import pytest

from secateur import checking
from secateur.checking import SuiteCrashed, check
from secateur.errors import ExitCode, UserError
from secateur.factory import DataSpec
from secateur.gates import Gates
from secateur.verdict import Verdict

FAST = {"seconds": 0.02, "batches": (1,)}
SUITE = ("-p", "secateur.runtime_tests.plugin", "--pyargs", "secateur.runtime_tests")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checking") / "artifact"
    gate_artifacts.write_artifact(folder)
    return folder


@pytest.fixture
def at_once(warm, monkeypatch):
    """The suite's interpreter need not be a new one where a test is about what the gates say."""
    monkeypatch.setattr(checking, "sys", SimpleNamespace(executable=str(warm / "python"), path=sys.path))


def data(folder: Path, function: str = "loaders") -> DataSpec:
    return DataSpec(factory=f"{folder}/data.py:{function}", args={"folder": str(folder)})


def test_a_sound_artifact_passes_with_everything_on_paper(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conftest.py").write_text("raise RuntimeError('a conftest of the user has no part in this')")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--also-no-such-option")
    gates = Gates(accuracy={"max_drop": 2}, latency={"max": "5000%", **FAST}, size={"max": "60%"}, kernels=None)
    verdict = check(
        folder / "out", gates, data=data(folder), junit=tmp_path / "junit.xml", verdict=tmp_path / "verdict.json"
    )

    assert verdict.passed, verdict.failures
    assert verdict.exit_code is ExitCode.OK
    assert list(dict.fromkeys(result.gate for result in verdict.gates)) == list(Gates.model_fields)
    assert [result.state for result in verdict.gate("kernels")] == ["not asked"]
    assert {"onnxruntime", "cpu", "cores", "instruction_sets"} <= verdict.environment.keys()

    written = json.loads((tmp_path / "verdict.json").read_text(encoding="utf-8"))
    assert written["passed"] is True
    assert Verdict.from_json((tmp_path / "verdict.json").read_text(encoding="utf-8")) == verdict

    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert {k: suite.get(k) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": "6",
        "failures": "0",
        "errors": "0",
        "skipped": "1",
    }
    assert [p.name for p in tmp_path.iterdir() if "cache" in p.name] == []


@pytest.mark.usefixtures("at_once")
def test_broken_limits_and_missing_prerequisites_are_all_reported(folder, tmp_path):
    gates = Gates(accuracy={"max_drop": 2}, latency={"max": "1%", **FAST}, size={"max": "1kB"})
    verdict = check(folder / "out", gates, junit=tmp_path / "junit.xml")  # no data

    assert verdict.exit_code is ExitCode.GATE
    assert {result.gate for result in verdict.failures} == {"accuracy", "parity", "latency", "size"}
    assert "no test data was given" in verdict.gate("accuracy")[0].text
    assert "set this gate to null" in verdict.gate("parity")[0].text
    assert verdict.gate("size")[0].measured > verdict.gate("size")[0].limit == 1
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert (suite.get("failures"), suite.get("errors")) == ("4", "0")
    case = next(c for c in suite.iter("testcase") if c.get("name") == "test_size")
    assert "limit at most 1 kB" in case.find("failure").get("message")


@pytest.mark.usefixtures("at_once")
def test_a_factory_that_raises_fails_the_gate_with_its_reason(folder):
    gates = Gates(latency=None, size=None, kernels=None, legality=None, parity=None, accuracy={"min": 1})
    verdict = check(folder / "out", gates, data=data(folder, "broken"))
    assert "disk on fire" in verdict.failures[0].text


def test_a_crash_is_no_verdict(folder, tmp_path):
    (tmp_path / "fatal.py").write_text("import os\ndef loaders(**_): os._exit(7)\n")
    spec = DataSpec(factory=f"{tmp_path}/fatal.py:loaders")
    gates = Gates(latency=None, size=None, kernels=None, parity=None)
    with pytest.raises(SuiteCrashed, match="status 7"):
        check(folder / "out", gates, data=spec, verdict=tmp_path / "verdict.json")
    assert not (tmp_path / "verdict.json").exists()


def test_an_artifact_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no artifact here"):
        check(tmp_path / "nowhere")


def run_pytest(*argv: object, cwd: Path, python: str | Path = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [python, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, argv)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_the_suite_can_be_run_by_hand_with_a_gate_file(folder, tmp_path):
    (folder / "gates.yaml").write_text(
        "gates:\n"
        "  accuracy: {max_drop: 2}\n"
        "  latency: null\n"
        "  parity: null\n"
        f"data: {{factory: data.py:loaders, args: {{folder: {folder}}}}}\n"  # relative to the gate file
    )
    arguments = ("--artifact", folder / "out", "--gates", folder / "gates.yaml", "--verdict", tmp_path / "v.json")
    done = run_pytest(*SUITE, *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert Verdict.from_json((tmp_path / "v.json").read_text(encoding="utf-8")).passed


def test_a_wrong_gate_file_is_one_message_with_a_suggestion(folder, tmp_path, warm):
    (tmp_path / "gates.yaml").write_text("gates: {latency: {maximum: 60%}, sizes: null}\n")
    arguments = ("--artifact", folder / "out", "--gates", tmp_path / "gates.yaml")
    done = run_pytest(*SUITE, *arguments, cwd=tmp_path, python=warm / "python")
    assert done.returncode == 4
    assert "unknown key gates.latency.maximum (did you mean max?)" in done.stderr
    assert "unknown key gates.sizes (did you mean size?)" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_an_artifact_nothing_of_the_suite_is_collected(tmp_path, warm):
    for argv in (SUITE, SUITE[2:]):
        done = run_pytest(*argv, cwd=tmp_path, python=warm / "python")
        assert done.returncode == 5, done.stdout + done.stderr  # pytest: no tests collected
