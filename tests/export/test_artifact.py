"""The artifact: complete or not there, verified when read, and the same every time."""

import json

import numpy as np
import pytest
import torch
from nets import NETS

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.errors import UserError
from secateur.export.artifact import Artifact
from secateur.export.export import export
from secateur.export.hashing import hash_file, hash_tree
from secateur.export.ort_session import open_session
from secateur.export.targets import ORT_CPU, find_target
from secateur.passes.capture import capture


@pytest.fixture(scope="module")
def programs():
    net, (x,) = NETS["resnet_a"]()
    dense = capture(net, (x,))
    quantised = calibrate(prepare(dense, ORT_CPU.scheme)[0], [(x, torch.zeros(len(x)))]).eval()
    return dense, quantised, x


@pytest.fixture
def artifact(programs, tmp_path):
    dense, quantised, _ = programs
    return export(quantised, tmp_path / "out", baseline=dense, facts={"params": 12})


def test_files_manifest_and_program(artifact, programs):
    _, quantised, x = programs
    manifest = artifact.manifest
    assert {"model.onnx", "dense.onnx"} <= set(manifest["files"])
    assert manifest["facts"] == {"params": 12} and manifest["target"] == "ort-cpu"
    assert manifest["inputs"] == [{"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "float32"}]
    assert manifest["outputs"] == [{"name": "output", "shape": ["batch", 10], "dtype": "float32"}]
    assert manifest["kernels"]["conv_share"] == 1.0 and manifest["kernels"]["integer"] > 0
    assert len(manifest["rewrites"]) == 1 and manifest["fallbacks"] == []
    for name, entry in manifest["files"].items():
        path = artifact.directory / name
        assert entry == {"sha256": hash_file(path), "bytes": path.stat().st_size}
    with torch.no_grad():
        torch.testing.assert_close(artifact.program().eval().module()(x), quantised.module()(x), rtol=0, atol=0)
    assert artifact.dense is not None and open_session(artifact.dense)


def test_the_directory_holds_what_the_manifest_says_and_no_more(artifact):
    assert set(hash_tree(artifact.directory)) == {*artifact.manifest["files"], "manifest.json"}
    assert [path.name for path in artifact.directory.parent.iterdir()] == ["out"]


def test_the_same_program_gives_the_same_artifact(artifact, programs, tmp_path):
    dense, quantised, _ = programs
    again = export(quantised, tmp_path / "again", baseline=dense, facts={"params": 12})
    varying = ("created", "environment")
    first, second = ({k: v for k, v in a.manifest.items() if k not in varying} for a in (artifact, again))
    assert first == second


def test_without_baseline_there_is_no_dense_model(programs, tmp_path):
    artifact = export(programs[1], tmp_path / "out")
    assert artifact.dense is None and not (tmp_path / "out" / "dense.onnx").exists()


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_artifact_is_refused(artifact, damage):
    if damage == "changed":
        with artifact.model.open("ab") as stream:
            stream.write(b"x")
    else:
        artifact.model.unlink()
    with pytest.raises(UserError, match=damage) as error:
        Artifact.load(artifact.directory)
    assert "model.onnx" in error.value.where


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "files": {}}', '{"files": {}}'])
def test_a_manifest_of_another_kind_is_refused(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError):
        Artifact.load(tmp_path)


def test_a_directory_that_is_no_artifact_is_neither_read_nor_replaced(programs, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not an artifact"):
        Artifact.load(tmp_path)
    with pytest.raises(UserError, match="not an artifact"):
        export(programs[1], tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_export_leaves_the_old_artifact(artifact, programs, monkeypatch, error):
    before = hash_tree(artifact.directory)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("secateur.export.export.build_manifest", fail)
    with pytest.raises(error):
        export(programs[0], artifact.directory)
    assert hash_tree(artifact.directory) == before
    assert [path.name for path in artifact.directory.parent.iterdir()] == ["out"]
    Artifact.load(artifact.directory)


def test_a_failed_swap_brings_the_old_artifact_back(artifact, programs, monkeypatch):
    before = hash_tree(artifact.directory)
    rename = type(artifact.directory).rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(type(artifact.directory), "rename", fail)
    with pytest.raises(OSError, match="disk gone"):
        export(programs[0], artifact.directory)
    assert hash_tree(artifact.directory) == before


def test_an_artifact_is_replaced_and_leftovers_of_a_killed_export_vanish(artifact, programs):
    stale = artifact.directory.parent / ".out.partial"
    stale.mkdir()
    (stale / "half").write_text("")
    replaced = export(programs[0], artifact.directory)
    assert replaced.dense is None and replaced.manifest["kernels"]["integer"] == 0
    assert [path.name for path in artifact.directory.parent.iterdir()] == ["out"]


def test_a_directory_with_hidden_files_only_is_filled(programs, tmp_path):
    out = tmp_path / "step"
    out.mkdir()
    (out / ".key").write_text("k")
    export(programs[1], out)
    assert (out / ".key").read_text() == "k" and Artifact.load(out).model.is_file()


def test_facts_that_are_not_plain_data_are_refused(programs, tmp_path):
    with pytest.raises(UserError, match="plain data"):
        export(programs[1], tmp_path / "out", facts={"accuracy": np.float32(1)})
    assert not (tmp_path / "out").exists()


def test_an_output_below_a_file_is_refused(programs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(programs[1], tmp_path / "file" / "out")


def test_an_unknown_target_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="ort-cpu"):
        find_target("ort-gpu")


def test_the_manifest_is_plain_json(artifact):
    assert json.loads((artifact.directory / "manifest.json").read_text()) == artifact.manifest
