"""`secateur sparsify`: what it writes, and what it refuses."""

import json

import pytest
import torch
from runs import secateur, tiny_recipe
from safetensors.torch import load_file

from secateur.compress.chita.nm import holds_pattern
from secateur.passes.program import Program

FAST = ("--option", "refit_samples=64", "--option", "stages=2", "-q")


def test_two_of_four_is_healed_quantised_and_exported(tmp_path):
    recipe = tiny_recipe(tmp_path)
    out = tmp_path / "sparse"
    code, text, err = secateur("sparsify", recipe, "--pattern", "2:4", "--heal", "--int8", *FAST, "-o", out, "--json")
    assert code == 0, err
    found = json.loads(text)
    assert found["scores"]["int8"] > 0.9
    assert set(found["scores"]) == {"dense", "sparse", "healed", "int8"}
    assert found["stay_dense"] == {"conv1.weight": "its 3 input channels are no multiple of 4"}
    assert (out / "artifact" / "model.onnx").is_file()
    assert (out / "program" / "program.pt2").is_file()
    weights = load_file(out / "weights.safetensors")
    for name in ("conv2.weight", "conv3.weight", "fc.weight"):
        assert holds_pattern(weights[name], 2, 4)
    kept = Program.load(out / "program").module().get_parameter("conv2.weight")
    assert torch.equal(kept, weights["conv2.weight"])


def test_the_network_of_a_run_is_sparsified_and_a_table_is_printed(tmp_path):
    recipe = tiny_recipe(tmp_path)
    run = tmp_path / "run"
    assert secateur("apply", recipe, "-o", run, "-q")[0] == 0
    code, text, err = secateur("sparsify", run, "--sparsity", "0.5", *FAST, "-o", tmp_path / "out")
    assert code == 0, err
    assert "(50.0" in text
    assert "test metric, sparse" in text
    dense = Program.load(next(run.glob("*-apply/program"))).module().get_parameter("conv2.weight")
    sparse = Program.load(tmp_path / "out" / "program").module().get_parameter("conv2.weight")
    assert dense.shape == sparse.shape


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--sparsity", "1"), "between 0 and 1"),
        (("--method", "chitta"), "cannot be used"),
        (("--option", "sample=3"), "did you mean samples?"),
        (("--option", "samples=many"), "cannot be used"),
        (("--option", "samples=64"), "method reconstruct does not read samples"),
        (("--method", "magnitude", "--option", "solver=cd"), "method magnitude does not read solver"),
        (("--pattern", "2to4"), "written N:M"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error_and_writes_nothing(tmp_path, flags, message):
    code, _, err = secateur("sparsify", tiny_recipe(tmp_path), *flags, "-q", "-o", tmp_path / "out")
    assert code == 2
    assert message in err
    assert not (tmp_path / "out").exists()


def test_other_peoples_folders_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = secateur("sparsify", tiny_recipe(tmp_path), "--force", "-o", tmp_path, "-q")
    assert code == 2
    assert "not empty" in err


def test_an_earlier_result_is_replaced_whole_and_stays_where_the_new_one_fails(tmp_path, monkeypatch):
    from secateur.tools import sparsify as command

    recipe, out = tiny_recipe(tmp_path), tmp_path / "out"
    assert secateur("sparsify", recipe, "--sparsity", "0.5", *FAST, "-o", out)[0] == 0
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}

    def fails(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "export", fails)
        secateur("sparsify", recipe, "--sparsity", "0.8", *FAST, "-o", out, "--force")
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
    assert secateur("sparsify", recipe, "--sparsity", "0.8", *FAST, "-o", out, "--force")[0] == 0
    assert json.loads((out / "sparsify.json").read_text())["zeros"] > json.loads(before[out / "sparsify.json"])["zeros"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".out")] == []


def test_check_of_its_folder_says_where_the_artifact_is(tmp_path):
    recipe, out = tiny_recipe(tmp_path), tmp_path / "out"
    assert secateur("sparsify", recipe, "--sparsity", "0.5", *FAST, "-o", out)[0] == 0
    code, _, err = secateur("check", out)
    assert code == 2
    assert f"secateur check {out / 'artifact'}" in err.replace("\n", "")
