"""`inspect`, `bench` and `engine` on an artifact for TensorRT-RTX, on a machine without a GPU."""

import json
import shutil

import gate_artifacts
import pytest
import torch
from runs import secateur

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.errors import EnvironmentLacksError, ExitCode
from secateur.export.export import export
from secateur.export.targets import TARGETS
from secateur.export.tensorrt.settings import EngineSettings
from secateur.passes.capture import capture

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture(scope="module")
def programs():
    net = gate_artifacts.network()
    x, y = gate_artifacts.samples(net)
    dense = capture(net, (x[:2],))
    prepared, _ = prepare(dense, TARGETS["tensorrt-rtx"].scheme)
    return dense, calibrate(prepared, [(x, y)]).eval()


@pytest.fixture(scope="module")
def original(programs, tmp_path_factory):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'secateur[tensorrt-rtx]'")
    dense, quantised = programs
    settings = EngineSettings(capabilities=("8.6", "8.9"), batch=(1, 4, 16))
    out = tmp_path_factory.mktemp("inspect") / "out"
    return export(quantised, out, target="tensorrt-rtx", baseline=dense, engine=settings).directory


@pytest.fixture
def out(original, tmp_path):
    return shutil.copytree(original, tmp_path / "out")


def inspected(source):
    code, printed, err = secateur("inspect", source, "--json")
    assert code == ExitCode.OK, err
    return json.loads(printed)


def test_inspect_tells_what_the_engines_are(out):
    found = inspected(out)
    assert found["target"] == "tensorrt-rtx" and found["engines"].keys() == {"model.plan", "dense.plan"}
    model, dense = found["engines"]["model.plan"], found["engines"]["dense.plan"]
    assert (model["library"], model["capabilities"], model["batch"]) == ("tensorrt_rtx", ["8.6", "8.9"], [1, 4, 16])
    assert model["state"] == dense["state"] == "fits its file; there is no GPU here"
    assert model["bytes"] == (out / "model.plan").stat().st_size and sum(model["layers"].values()) > 0
    assert found["source"] == "build log" and dense["integer"] == 0
    assert found["integer"] == model["integer"] > 0 and len(found["float"]) == found["total"] - found["integer"]
    code, text, _ = secateur("inspect", out)
    assert code == ExitCode.OK and "model.plan" in text and "8.6, 8.9" in text and "1 to 16" in text
    assert all(f"not INT8: {entry['node']}" in text for entry in found["float"])


def test_inspect_of_one_engine_compares_it_with_the_file_beside_it(out):
    assert inspected(out / "model.plan")["engines"]["model.plan"]["state"].startswith("fits its file")
    shutil.copy(out / "dense.onnx", out / "model.onnx")
    assert "stale" in inspected(out / "model.plan")["engines"]["model.plan"]["state"]
    (out / "model.plan.json").unlink()
    code, _, err = secateur("inspect", out / "model.plan")
    assert code == ExitCode.USAGE and "foreign" in err and "Traceback" not in err


def test_inspect_of_an_artifact_without_an_engine_says_why(programs, tmp_path, monkeypatch):
    def missing(name):
        raise EnvironmentLacksError(f"{name} cannot be imported", why="no module")

    monkeypatch.setattr("secateur.export.tensorrt.engine_file.load_library", missing)
    made = export(programs[1], tmp_path / "out", target="tensorrt")
    found = inspected(made.directory)
    assert found["engines"] == {} and found["source"] == "ONNX file" and found["integer"] > 0
    code, text, _ = secateur("inspect", made.directory)
    assert code == ExitCode.OK and "no engine of model.onnx: tensorrt cannot be imported" in text


def test_bench_of_an_engine_says_that_it_needs_a_gpu(out):
    for source in (out, out / "model.plan"):
        code, printed, err = secateur("bench", source)
        assert code == ExitCode.ENVIRONMENT and not printed
        assert "needs a CUDA device" in err and "Traceback" not in err
    (out / "model.plan").unlink()
    code, _, err = secateur("bench", out)
    assert code == ExitCode.USAGE and "model.plan" in err


def test_engine_builds_only_what_its_settings_change(out):
    code, printed, _ = secateur("engine", out, "--json", "--quiet")
    assert code == ExitCode.OK and json.loads(printed)["built"] == []
    code, printed, err = secateur("engine", out, "--batch", "1,2,4", "--workspace", "64", "--json", "--quiet")
    assert code == ExitCode.OK, err
    found = json.loads(printed)
    assert found["built"] == ["model.plan", "dense.plan"]
    key = found["engines"]["model.plan"]["key"]
    assert (key["flags"]["batch"], key["flags"]["workspace_mib"]) == ([1, 2, 4], 64)
    assert key["capabilities"] == ["8.6", "8.9"]  # kept
    assert inspected(out)["engines"]["model.plan"]["batch"] == [1, 2, 4]
    shape = "x".join(str(size) for size in gate_artifacts.samples(gate_artifacts.network())[0].shape[1:])
    profile = f"x=1x{shape},2x{shape},8x{shape}"
    code, printed, err = secateur("engine", out, "--profile", profile, "--json", "--quiet")
    assert code == ExitCode.OK, err
    assert json.loads(printed)["engines"]["model.plan"]["key"]["flags"]["profiles"]["x"]["max"][0] == 8


@pytest.mark.parametrize("profile", ["x", "x=1x3", "=1x3,1x3,1x3", "x=1x3,axb,1x3"])
def test_a_profile_that_is_none_is_refused(out, profile):
    code, _, err = secateur("engine", out, "--profile", profile)
    assert code == ExitCode.USAGE and "is no profile" in err and "ids=1x16,8x128,32x256" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--batch", "8,1,32"], "smallest"),
        (["--capability", "9.0"], "9.0"),
        (["--profile", "y=1x3,1x3,1x3"], "no input 'y'"),
        (["--sparse"], "2:4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(out, options, says):
    code, _, err = secateur("engine", out, *options, "--quiet")
    assert code in (ExitCode.USAGE, ExitCode.UNSUPPORTED) and says in err and "Traceback" not in err, err
