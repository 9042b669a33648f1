"""A whole compile on a tiny network: what it writes, keeps, continues and refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import HERE, secateur, tiny_recipe

from secateur.errors import ExitCode

pytestmark = pytest.mark.usefixtures("warm_checks")

SHUFFLED = """\
import tiny_recipe
from torch.utils.data import DataLoader, TensorDataset

def data():
    train, test = (TensorDataset(*tiny_recipe.samples(n, n)) for n in (128, 64))
    return {"train": DataLoader(train, 32, shuffle=True), "test": DataLoader(test, 32)}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, warm_checks):
    """A finished run, its recipe beside it."""
    folder = tmp_path_factory.mktemp("compile")
    code, out, err = secateur("compile", tiny_recipe(folder), "--out", folder / "run", "--debug")
    assert code == ExitCode.OK, err
    return folder / "run", out


@pytest.fixture
def copy(run, tmp_path):
    """A copy of the finished run, to break."""
    shutil.copytree(run[0], tmp_path / "run")
    return tmp_path / "run"


def _hears_interrupts():
    """A test suite that was started in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def recipe_of(run):
    return run[0].parent / "tiny.yaml"


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_every_step_leaves_its_folder_and_the_manifest_names_every_file(run):
    steps = ["01-capture", "02-rank", "03-plan", "04-apply", "05-heal", "06-quantize", "07-export", "08-check"]
    assert sorted(p.name for p in run[0].iterdir() if p.is_dir()) == steps
    for step in steps:
        written = {str(p.relative_to(run[0] / step)) for p in (run[0] / step).rglob("*") if p.is_file()}
        assert set(manifest(run[0])["steps"][step]["outputs"]) == written


def test_the_result_meets_the_budget(run):
    steps = manifest(run[0])["steps"]
    assert steps["04-apply"]["facts"]["cost"]["macs"] <= 0.6 * steps["01-capture"]["facts"]["cost"]["macs"]


def test_stdout_has_the_table_and_the_report(run):
    assert "INT8 artifact" in run[1] and (run[0] / "report.html").is_file() and "report.html" in run[1]


def test_a_second_compile_keeps_every_step(run):
    before = manifest(run[0])
    code, _, err = secateur("compile", recipe_of(run), "--out", run[0])
    assert code == ExitCode.OK and err.count("kept") == 8
    assert manifest(run[0])["steps"] == before["steps"]


def test_another_recipe_is_refused_and_resume_runs_what_it_concerns(run, copy):
    code, _, err = secateur("compile", recipe_of(run), "--out", copy, "--set", "quantize.samples=32")
    assert code == ExitCode.USAGE and "different: quantize" in err
    code, _, err = secateur("compile", recipe_of(run), "--out", copy, "--set", "quantize.samples=32", "--resume")
    assert code == ExitCode.OK, err
    assert "heal kept" in err and "quantize finished" in err


def test_a_verification_that_is_asked_for_later_keeps_the_scores_and_the_plan(run, copy):
    table = copy / "02-rank" / "sensitivity.safetensors"
    before = table.read_bytes()
    argv = ["compile", recipe_of(run), "--out", copy, "--resume", "--set"]
    code, _, err = secateur(*argv, "rank.verify=5")
    assert code == ExitCode.OK, err
    assert "rank finished" in err and err.count(" kept") == 7 + 1, err  # seven steps, and the scores
    assert table.read_bytes() == before
    assert len(json.loads((copy / "02-rank" / "verification.json").read_text())["measured"]) == 5
    code, _, err = secateur(*argv, "rank.samples=32")
    assert code == ExitCode.OK and "plan finished" in err and table.read_bytes() != before


def test_an_edited_plan_is_used_by_the_steps_after_it(copy):
    plan = copy / "03-plan" / "plan.yaml"
    before = manifest(copy)["steps"]["04-apply"]["facts"]["cost"]["params"]
    text, pruned = re.subn(
        r"\{action: prune, keep: (\d+)/(\d+).*\}", r"{action: keep, keep: \2/\2}", plan.read_text(), count=1
    )
    assert pruned
    plan.write_text(text)
    code, _, err = secateur("apply", copy)
    assert code == ExitCode.OK, err
    assert "edited by hand" in err and "the plan was edited" in err and "does not meet the budget" in err
    assert manifest(copy)["steps"]["04-apply"]["facts"]["cost"]["params"] > before


def test_a_damaged_step_is_named(copy):
    weights = copy / "05-heal" / "program" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, _, err = secateur("quantize", copy)
    assert code == ExitCode.USAGE and "weights.safetensors" in err and "--force" in err


def test_a_damaged_manifest_is_named(copy):
    (copy / "manifest.json").write_text("{")
    code, _, err = secateur("rank", copy)
    assert code == ExitCode.USAGE and "manifest is damaged" in err


@pytest.mark.parametrize("steps", [5, [], {"01-capture": 5}, {"01-capture": {"key": "x"}}])
def test_a_manifest_with_a_step_that_is_none_is_named(tmp_path, steps):
    from secateur.errors import UserError
    from secateur.run_directory import RunDirectory

    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "steps": steps}))
    with pytest.raises(UserError, match="manifest is damaged"):
        RunDirectory(tmp_path).record("01-capture")


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_recipe_in_the_run_that_lost_its_end_is_a_usage_error_of_the_report(copy, kept):
    recipe = copy / "recipe.yaml"
    recipe.write_text("".join(recipe.read_text().splitlines(keepends=True)[:kept]))
    code, _, err = secateur("report", copy)
    assert code == ExitCode.USAGE and "recipe.yaml" in err and "Traceback" not in err, err


def test_a_directory_that_is_no_run_is_not_touched(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, _, err = secateur("compile", recipe_of(run), "--out", tmp_path, "--force")
    assert code == ExitCode.USAGE and "not a run directory" in err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_directory_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = secateur("compile", recipe_of(run), "--out", tmp_path / "file" / "run")
    assert code == ExitCode.USAGE and "cannot be written" in err


def test_an_infeasible_budget_is_refused_before_training_with_the_nearest(run, tmp_path):
    code, _, err = secateur("compile", recipe_of(run), "--out", tmp_path / "run", "--max-macs", "1%")
    assert code == ExitCode.GATE and "nearest" in err
    assert not (tmp_path / "run" / "05-heal").exists()
    code, _, err = secateur("report", tmp_path / "run")
    assert code == ExitCode.USAGE and "step plan has not finished" in err


def test_a_limit_that_cannot_hold_exits_with_3(run):
    code, out, _ = secateur("check", run[0], "--max-latency", "1%")
    assert code == ExitCode.GATE and "FAILED" in out


def test_check_prints_json(run):
    code, out, _ = secateur("check", run[0], "--json")
    assert code == ExitCode.OK and json.loads(out)["passed"] is True


def test_the_same_recipe_gives_the_same_artifact_bit_for_bit(run, tmp_path):
    code, _, err = secateur("export", recipe_of(run), "--out", tmp_path / "run")
    assert code == ExitCode.OK, err
    for name in ("03-plan/plan.yaml", "07-export/model.onnx"):
        assert (run[0] / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_an_interrupted_run_continues_where_it_stopped(run, tmp_path):
    """The training is made so long (hours) that it cannot end before the signal comes, however busy the machine is."""
    recipe = tiny_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("epochs: 1", "epochs: 100000"))
    argv = [sys.executable, "-m", "secateur", "heal", str(recipe), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        argv,
        cwd=tmp_path,
        env={**os.environ, "TINY_DIR": str(HERE)},
        stderr=subprocess.PIPE,
        preexec_fn=_hears_interrupts,
    )
    state = tmp_path / "run" / "05-heal.partial" / "state"
    deadline = time.monotonic() + 240
    while not (state / "training.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert b"interrupted" in err and b"Traceback" not in err
    assert not (tmp_path / "run" / "05-heal").exists() and any(state.iterdir())
    code, _, err = secateur("plan", tmp_path / "run")
    assert code == ExitCode.OK and "capture kept" in err


def test_what_a_step_draws_does_not_depend_on_the_steps_before_it(tmp_path):
    """A loader that shuffles by the global random numbers: run through, and stopped and continued, it is the same."""
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "shuffled.py").write_text(SHUFFLED)
    data, magnitude = f"data.factory={tmp_path}/shuffled.py:data", "rank.method=magnitude"
    for name, stops in (("through", ("heal",)), ("stopped", ("rank", "heal"))):
        for stop in stops:
            argv = [stop, recipe, "--out", tmp_path / name, "--set", data, "--set", magnitude]
            code, _, err = secateur(*argv)
            assert code == ExitCode.OK, err
    through, stopped = (tmp_path / name / "05-heal/program/weights.safetensors" for name in ("through", "stopped"))
    assert through.read_bytes() == stopped.read_bytes()


def test_facts_keep_their_order_in_the_manifest(tmp_path):
    from secateur.run_directory import RunDirectory

    run = RunDirectory(tmp_path)
    with run.writing("01-capture", "key"):
        run.finish("01-capture", "key", {"pruned": 1, "healed": 2, "a": 3}, 0.0)
    assert list(run.manifest()["steps"]["01-capture"]["facts"]) == ["pruned", "healed", "a"]


def test_a_run_that_was_killed_at_its_very_start_is_still_known_as_a_run(run, tmp_path, monkeypatch):
    from secateur import pipeline

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_yaml", killed)
    argv = ("rank", recipe_of(run), "--out", tmp_path / "run", "--set", "rank.method=magnitude")
    assert secateur(*argv)[0] == ExitCode.INTERRUPTED
    monkeypatch.undo()
    code, _, err = secateur(*argv)
    assert code == ExitCode.OK, err


def test_several_processes_of_torchrun_are_refused(run, copy, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for argv in (("rank", copy), ("rank", recipe_of(run), "--out", copy)):
        code, _, err = secateur(*argv)
        assert code == ExitCode.USAGE and "torchrun started 2" in err and "heal and quantize" in err


def test_two_processes_do_not_share_a_run_directory(copy):
    from secateur.run_directory import RunDirectory

    with RunDirectory(copy).locked():
        code, _, err = secateur("rank", copy)
    assert code == ExitCode.USAGE and "another secateur" in err


def test_the_manifest_names_no_file_outside_the_run(run):
    for step, record in manifest(run[0])["steps"].items():
        assert all(not Path(name).is_absolute() for name in record["outputs"]), step
