"""`inspect` knows everything that a command writes, and says what a path is not."""

import json
import shutil

import pytest
from runs import secateur, tiny_recipe

from secateur.errors import ExitCode
from secateur.verdict import GateResult, Verdict

FAST = ("--set", "rank.method=magnitude", "--set", "heal.epochs=0", "-q")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    recipe = tiny_recipe(folder)
    code, _, err = secateur("export", recipe, "--out", folder / "run", *FAST)
    assert code == ExitCode.OK, err
    checked = folder / "run" / "08-check"
    checked.mkdir()
    Verdict(str(folder), (GateResult("accuracy", "drop", "passed"),)).save(checked / "verdict.json")
    for part in (checked / "junit.xml", folder / "run" / "report.html"):
        part.touch()
    few = ("--option", "refit_samples=64", "--option", "stages=1")
    code, _, err = secateur("sparsify", recipe, "--out", folder / "sparse", *few, "-q")
    assert code == ExitCode.OK, err
    shutil.copy(folder / "run" / "03-plan" / "plan.yaml", folder / "mine.yaml")
    return folder


@pytest.mark.parametrize(
    ("path", "key", "shown"),
    [
        ("tiny.yaml", "groups", "conv1"),
        ("run", "groups", "conv1"),
        ("run/manifest.json", "groups", "conv1"),
        ("run/report.html", "groups", "conv1"),
        ("run/01-capture", "groups", "conv1"),
        ("run/02-rank", "method", "magnitude"),
        ("run/02-rank/sensitivity.safetensors", "method", "magnitude"),
        ("run/03-plan", "planned", "plan for ort-cpu"),
        ("run/03-plan/plan.yaml", "planned", "plan for ort-cpu"),
        ("mine.yaml", "planned", "prune"),
        ("run/04-apply", "passes", "MACs a sample"),
        ("run/05-heal/program/weights.safetensors", "passes", "MACs a sample"),
        ("run/06-quantize/program/graph.json", "passes", "MACs a sample"),
        ("run/07-export", "kernels", "model.onnx"),
        ("run/07-export/manifest.json", "kernels", "model.onnx"),
        ("run/07-export/dense.onnx", "kernels", "dense.onnx"),
        ("run/08-check", "gates", "accuracy"),
        ("run/08-check/verdict.json", "gates", "accuracy"),
        ("run/08-check/junit.xml", "gates", "accuracy"),
        ("sparse", "zeros_by_weight", "conv2.weight"),
        ("sparse/sparsify.json", "zeros_by_weight", "conv2.weight"),
        ("sparse/weights.safetensors", "zeros_by_weight", "conv2.weight"),
        ("sparse/artifact", "kernels", "model.onnx"),
        ("sparse/program/program.pt2", "groups", "conv1"),
    ],
)
def test_what_a_command_wrote_was_taken_for_a_broken_recipe(folder, path, key, shown):
    code, out, err = secateur("inspect", folder / path, "--json")
    assert code == ExitCode.OK and key in json.loads(out), err
    code, out, err = secateur("inspect", folder / path)
    assert code == ExitCode.OK and shown in out, err


def test_the_numbers_of_a_plan_are_those_of_the_plan(folder):
    _, out, _ = secateur("inspect", folder / "run" / "03-plan", "--json")
    _, dense, _ = secateur("inspect", folder / "run" / "01-capture", "--json")
    _, cut, _ = secateur("inspect", folder / "run" / "04-apply", "--json")
    found, widths = json.loads(out), {group["name"]: group["width"] for group in json.loads(cut)["groups"]}
    assert found["dense"] == {name: json.loads(dense)[name] for name in ("params", "macs")}
    assert found["planned"] == {name: json.loads(cut)[name] for name in ("params", "macs")}
    assert {group["name"]: group["kept"] for group in found["groups"]} == widths


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (None, b"", "there is nothing here"),
        ("weights.pt", b"\x80\x02junk", "nothing here that secateur knows"),
        ("model.py", b"x = 1\n", "nothing here that secateur knows"),
        ("empty.yaml", b"", "a recipe must be a mapping"),
        ("sparsify.json", b"{}", "this file of sparsify is damaged"),
        ("verdict.json", b"[1]", "this is not a verdict"),
        ("plan.yaml", b"secateur: plan/1\n", "plan"),
        ("model.onnx", b"junk", "not an ONNX file"),
    ],
)
def test_what_a_path_is_not_is_said(tmp_path, name, content, told):
    path = tmp_path / (name or "nowhere")
    if name:
        path.write_bytes(content)
    code, out, err = secateur("inspect", path)
    assert code == ExitCode.USAGE and out == ""
    assert told in err and "where: " in err and "Traceback" not in err


def test_a_run_of_which_no_step_has_finished_says_so(folder, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("manifest.json", "recipe.yaml"):
        shutil.copy(folder / "run" / name, tmp_path / "run" / name)
    code, _, err = secateur("inspect", tmp_path / "run")
    assert code == ExitCode.USAGE and "no step of this run has finished" in err
