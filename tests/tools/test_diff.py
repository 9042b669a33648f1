"""`diff` names exactly what was made to differ between two runs or two plans."""

import json
import os
import re
import shutil
import time
from dataclasses import replace

import pytest
from report_sample import report_data
from runs import secateur, tiny_recipe

from secateur.compress.cost.model import Cost
from secateur.compress.plan import BlockPlan, GroupPlan, Plan
from secateur.errors import ExitCode
from secateur.export.hashing import hash_file
from secateur.outdated import outdated_steps
from secateur.passes.implant_form import Implant
from secateur.pipeline import step_key
from secateur.progress import Silent
from secateur.recipe_file import parse_recipe, read_yaml, write_yaml
from secateur.run_directory import RunDirectory
from secateur.steps import STEPS, Context
from secateur.version import __version__

PLAN = Plan(
    target="ort-cpu",
    budget={"macs": "60%"},
    method="hap",
    unit="loss",
    program="aaaa",
    dense=Cost(1000, 20_000),
    planned=Cost(600, 12_000),
    delta_loss=0.02,
    std_error=0.004,
    groups={
        "conv1": GroupPlan(8, removed=(0, 1), delta_loss=0.02, std_error=0.004),
        "conv2": GroupPlan(8, removed=(3, 4, 5), delta_loss=0.01),
        "conv3": GroupPlan(16),
    },
    measured={
        "latency at batch 1": {"predicted": 0.61, "measured": 0.63, "interval": [0.62, 0.64]},
        "size": {"predicted": 0.5, "bytes": 2000},
    },
)
SCORES = {
    "capture": {"cost": {"params": 1000, "macs": 20_000}, "score": {"test": 0.92}},
    "rank": {"method": "hap", "unit": "loss", "score": "not a metric"},
    "plan": {},
    "apply": {"cost": {"params": 600, "macs": 12_000}, "score": {"test": 0.3}},
    "heal": {"score_before": {"pruned": 0.3, "batch norm re-estimated": 0.8}, "score": {"test": 0.91}},
    "quantize": {"score": {"test": 0.9}},
    "export": {},
    "check": {},
}


def resolved(**sections):
    raw = {"model": {"factory": "m:f"}, "data": {"factory": "m:d"}, "budget": {"macs": "60%"}}
    return parse_recipe(raw | sections, where="test")


def make_run(
    folder, until="check", *, recipe=None, plan=PLAN, passed=True, weights="w", model_bytes=100, scores=SCORES
):
    """A run directory with the files and keys of a real one, and made-up numbers."""
    run, recipe = RunDirectory(folder), recipe or resolved()
    run.write_manifest({**run.manifest(), "environment": {"secateur": __version__, "torch": "2.13"}, "seed": 0})
    write_yaml(recipe.model_dump(mode="json"), run.recipe_file)
    for name, step in STEPS.items():
        key = step_key(step, Context(recipe, run, Silent()))
        with run.writing(step.folder, key) as scratch:
            if name == "capture":
                (scratch / "weights.safetensors").write_text(weights)
            elif name == "plan":
                plan.save(scratch / "plan.yaml")
            elif name == "export":
                (scratch / "model.onnx").write_bytes(b"x" * model_bytes)
                entry = {"sha256": hash_file(scratch / "model.onnx"), "bytes": model_bytes}
                (scratch / "manifest.json").write_text(json.dumps({"format": 1, "files": {"model.onnx": entry}}))
            elif name == "check":
                report_data(passed).verdict.save(scratch / "verdict.json")
        run.finish(step.folder, key, scores[name], time.monotonic())
        if name == until:
            return folder
    raise AssertionError(until)


def diff(a, b):
    """The JSON document, and the text with single spaces."""
    code, out, err = secateur("diff", a, b, "--json")
    assert code == ExitCode.OK, err
    code, text, err = secateur("diff", a, b)
    assert code == ExitCode.OK, err
    return json.loads(out), re.sub(r"[ │]+", " ", text)


def values(lines):
    return {line["name"]: tuple(side and side["value"] for side in (line["a"], line["b"])) for line in lines}


def test_a_run_does_not_differ_from_itself_nor_from_one_made_alike(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    for other in (a, b):
        found, text = diff(a, other)
        assert found["same"] and found["recipe"] == [] and found["plan"]["same"] and found["results"]["same"]
        assert found["notes"] == [] and "nothing differs: recipe, environment, captured network, plan, results" in text
        assert "key" not in text and "group" not in text
    found, text = diff(a, b / "03-plan")
    assert found["same"] and found["results"] is None and "nothing differs: plan" in text


def test_a_run_that_cannot_be_written_is_compared(tmp_path, monkeypatch):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    monkeypatch.setattr("secateur.run_directory.os.access", lambda path, mode, **_: mode != os.W_OK)
    assert diff(a, b)[0]["same"]


def test_keys_of_the_recipe_are_dotted_and_absent_ones_are_told_from_null(tmp_path):
    a = make_run(tmp_path / "a", "capture")
    changed = resolved(
        budget={"macs": "50%", "accuracy_drop": 1.0}, model={"factory": "m:f", "args": {"depth": 20}}, seed=3
    )
    b = make_run(tmp_path / "b", "capture", recipe=changed)
    found, text = diff(a, b)
    rows = {row.pop("key"): row for row in found["recipe"]}
    assert rows == {
        "model.args.depth": {"b": 20},
        "budget.macs": {"a": "60%", "b": "50%"},
        "budget.accuracy_drop": {"a": None, "b": 1.0},
        "gates.accuracy.max_drop": {"a": None, "b": 1.0},
        "seed": {"a": 0, "b": 3},
    }
    assert " budget.macs 60% 50% " in text and " model.args.depth – 20 " in text and " seed 0 3 " in text
    assert "no plan in A and B: plans are not compared" in text and not found["same"]


def test_versions_code_and_weights_that_changed_under_the_same_recipe_are_told(tmp_path):
    code = tmp_path / "net.py"
    recipe = resolved(model={"factory": f"{code}:model"})
    code.write_text("one = 1\n")
    a = make_run(tmp_path / "a", "plan", recipe=recipe)
    code.write_text("one = 2\n")
    b = make_run(tmp_path / "b", "plan", recipe=recipe, weights="others")
    manifest = json.loads((b / "manifest.json").read_text())
    manifest["environment"]["torch"] = "2.14"
    (b / "manifest.json").write_text(json.dumps(manifest))
    found, text = diff(a, b)
    assert found["recipe"] == [] and found["environment"] == [{"key": "torch", "a": "2.13", "b": "2.14"}]
    assert [row["key"] for row in found["captured"]] == ["weights"] and found["plan"]["same"] and not found["same"]
    assert any("the code or the checkpoint in those files has changed" in note for note in found["notes"])
    assert "units of the same number need not do the same" in text


def test_groups_of_plans_differ_in_units_not_in_their_order_or_reason(tmp_path):
    groups = {
        "conv1": GroupPlan(8, removed=(1, 0), reason="in another order"),
        "conv2": GroupPlan(8, removed=(4, 5, 6, 7), delta_loss=0.03),
        "conv3": GroupPlan(16, removed=(9,), implant=Implant((2, 3), "low-rank", 2)),
    }
    blocks = {"layer1.1": BlockPlan(dropped=True), "layer1.2": BlockPlan(dropped=False)}
    other = replace(PLAN, groups=groups, blocks=blocks, planned=Cost(500, 12_000), delta_loss=0.03)
    other = replace(other, measured={"latency at batch 1": {"measured": 0.635, "interval": [0.63, 0.65]}})
    PLAN.save(tmp_path / "a.yaml")
    other.save(tmp_path / "b.yaml")
    found, text = diff(tmp_path / "a.yaml", tmp_path / "b.yaml")
    plan = found["plan"]
    assert found["recipe"] is None and found["results"] is None and plan["same_groups"]
    conv2, conv3 = plan["groups"]
    # A keeps 0 1 2 6 7, B keeps 0 1 2 3
    assert (conv2["name"], conv2["a"]["kept"], conv2["b"]["kept"], conv2["kept_in_both"]) == ("conv2", 5, 4, 3)
    assert conv3["b"]["implant"] == {"form": "low-rank", "rank": 2, "units": 2} and conv3["kept_in_both"] == 15
    assert plan["blocks"] == [{"key": "layer1.1", "a": False, "b": True}]
    assert values(plan["totals"]) == {
        "parameters": (600, 500),
        "MACs": (12_000, 12_000),
        "predicted loss": (0.02, 0.03),
        "latency at batch 1, measured": (0.63, 0.635),
        "size, predicted": (0.5, None),
    }
    assert " conv2 5/8 4/8 3 0.01 0.03 " in text and "2 of 3 groups differ" in text
    assert "15/16, 2 of them implants (low-rank, rank 2)" in text
    assert " parameters 600 (60.0%) 500 (50.0%) −16.7% " in text
    assert " 63.00% (62.00 to 64.00) 63.50% (63.00 to 65.00) +0.50 points, intervals overlap " in text
    assert "block layer1.1 is dropped in B, kept in A" in text


def test_measurements_that_were_edited_away_are_not_shown(tmp_path):
    strange = {"a": {"measured": "fast"}, "b": {"measured": 0.5, "interval": ["x", 1]}, "c": {}}
    for name, measured in (("a", strange), ("b", {})):
        replace(PLAN, measured=measured).save(tmp_path / f"{name}.yaml")
    found, text = diff(tmp_path / "a.yaml", tmp_path / "b.yaml")
    lines = [line for line in found["plan"]["totals"] if line["differs"]]
    assert [(line["name"], line["a"], line["b"]) for line in lines] == [("b, measured", {"value": 0.5}, None)]
    assert " b, measured 50.00% – " in text


def test_plans_of_another_network_are_compared_where_groups_are_the_same(tmp_path):
    groups = {"conv1": GroupPlan(8, removed=(0, 2)), "conv2": GroupPlan(4, removed=(3,)), "head": GroupPlan(10)}
    replace(PLAN, program="bbbb", groups=groups, budget={"macs": "40%"}).save(tmp_path / "b.yaml")
    run = make_run(tmp_path / "a", "plan")
    found, text = diff(run, tmp_path / "b.yaml")
    assert not found["plan"]["same_groups"] and "the plans are of networks with other groups" in text
    shared = {group["name"]: group["kept_in_both"] for group in found["plan"]["groups"]}
    assert shared == {"conv1": 5, "conv2": None, "conv3": None, "head": None}
    assert " conv3 16/16 no such group – 0 – " in text
    assert found["plan"]["settings"] == [{"key": "budget.macs", "a": "60%", "b": "40%"}] and "budget.macs" in text


def test_results_of_two_finished_runs(tmp_path):
    scores = SCORES | {"heal": SCORES["heal"] | {"score": {"test": 0.905}}}
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", passed=False, model_bytes=150, scores=scores)
    found, text = diff(a, b)
    assert found["plan"]["same"] and not found["same"]
    lines = values(found["results"]["lines"])
    assert lines["top1, healed"] == (0.91, 0.905) and lines["top1, batch norm re-estimated"] == (0.8, 0.8)
    assert lines["model.onnx"] == (100, 150) and lines["median latency, batch 32"] == (3.02e-3, 3.02e-3)
    (drop, top1) = sorted(found["results"]["gates"], key=lambda gate: gate["name"])
    assert top1["name"] == "accuracy, top1" and drop["a"]["state"] == "passed" and drop["b"]["state"] == "failed"
    assert found["results"]["verdict"]["b"]["failed"] == ["accuracy, drop"]
    assert " top1, healed 91.00% 90.50% −0.50 points " in text
    assert " model.onnx 100 bytes 150 bytes +50.0% " in text
    assert " of the dense latency, batch 1 38.40% (37.82 to 39.05) 38.40% (37.82 to 39.05) " in text
    assert " 0.61 points ≤ 1 points passed 1.74 points ≤ 1 points FAILED " in text
    assert "gates of A: passed" in text and "gates of B: refused" in text and "1 failed; broken: accuracy, drop" in text


@pytest.mark.parametrize("until", [name for name in STEPS if name != "check"])
def test_an_unfinished_run_is_compared_as_far_as_it_has_come(tmp_path, until):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", until)
    found, text = diff(a, b)
    assert not found["same"] and f"a run, finished up to {until}" in text and "A: " in text
    assert found["b"]["steps"] == list(STEPS)[: STEPS[until].number]
    assert (found["plan"] is None) == (STEPS[until].number < STEPS["plan"].number)
    lines = values(found["results"]["lines"])
    assert lines["top1, dense FP32"] == (0.92, 0.92)
    assert lines["top1, healed"] == (0.91, 0.91 if until in ("heal", "quantize", "export") else None)
    assert found["results"]["gates"] == [] and "gates of B: the gates have not run" in text


def test_a_run_of_which_nothing_has_finished_still_has_a_recipe(tmp_path):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", recipe=resolved(seed=1))
    for step in STEPS.values():
        shutil.rmtree(b / step.folder)
    found, text = diff(a, b)
    assert found["recipe"] == [{"key": "seed", "a": 0, "b": 1}] and found["results"] is None
    assert "a run of which no step has finished" in text


@pytest.mark.parametrize(
    ("section", "first"),
    [
        ({"rank": {"method": "magnitude"}}, "rank"),
        ({"budget": {"macs": "50%"}}, "plan"),
        ({"heal": {"epochs": 7}}, "heal"),
        ({"quantize": {"samples": 7}}, "quantize"),
        ({"gates": {"accuracy": {"max_drop": 3.0}}}, "check"),
    ],
)
def test_steps_of_an_earlier_recipe_are_not_taken_for_those_of_this_one(tmp_path, section, first):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    write_yaml(resolved(**section).model_dump(mode="json"), b / "recipe.yaml")
    names = list(STEPS)
    outdated = outdated_steps(RunDirectory(b))
    assert outdated == tuple(names[names.index(first) :]) and outdated_steps(RunDirectory(a)) == ()
    found, _ = diff(a, b)
    assert found["b"]["steps"] == names[: names.index(first)] and any(first in note for note in found["notes"])


def test_of_another_version_nothing_is_called_outdated(tmp_path):
    run = RunDirectory(make_run(tmp_path / "a"))
    for change in ("version", "keys"):
        manifest, recipe = run.manifest(), read_yaml(run.recipe_file, what="recipe")
        if change == "version":
            run.write_manifest(manifest | {"environment": {"secateur": "0.0.1"}})
        else:
            write_yaml({key: value for key, value in recipe.items() if key != "engine"}, run.recipe_file)
        assert outdated_steps(run) == ()
        run.write_manifest(manifest)
        write_yaml(recipe, run.recipe_file)


def test_a_real_run_whose_plan_was_edited(tmp_path):
    fast = ("--set", "rank.method=magnitude", "--set", "heal.epochs=0", "-q")
    code, _, err = secateur("export", tiny_recipe(tmp_path), "--out", tmp_path / "a", *fast)
    assert code == ExitCode.OK, err
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found, text = diff(tmp_path / "a", tmp_path / "b")
    assert found["same"] and "nothing differs" in text
    path = tmp_path / "b" / "03-plan" / "plan.yaml"
    plan = Plan.load(path)
    name, line = next((name, line) for name, line in plan.groups.items() if len(line.removed) > 1)
    path.write_text(
        path.read_text()
        .replace(f"keep: {len(line.kept)}/", "keep: /")
        .replace(str(list(line.removed)), f"[{line.removed[0]}]")
    )
    found, text = diff(tmp_path / "a", tmp_path / "b")
    (group,) = found["plan"]["groups"]
    assert group["name"] == name and group["kept_in_both"] == len(line.kept) == group["a"]["kept"]
    assert group["b"]["kept"] == line.width - 1
    params = values(found["plan"]["totals"])["parameters"]
    assert params[0] == plan.planned.params < params[1]
    assert "B: the plan was edited" in text and "apply, heal, quantize, export: not compared" in text
    assert found["b"]["steps"] == ["capture", "rank", "plan"] and found["recipe"] == []


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (None, "", "there is nothing here"),
        ("recipe.yaml", "model: {}\n", "this is neither a run directory nor a plan"),
        ("verdict.json", "{}", "this is neither a run directory nor a plan"),
        ("plan.yaml", "secateur: plan/0\n", "this is not a plan of this version"),
        ("empty/x", "", "there is no run here"),
    ],
)
def test_what_is_no_run_and_no_plan_is_said(tmp_path, name, content, told):
    PLAN.save(tmp_path / "good.yaml")
    path = tmp_path / (name or "nowhere")
    if name:
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    path = path.parent if name == "empty/x" else path
    for sides in ((path, tmp_path / "good.yaml"), (tmp_path / "good.yaml", path)):
        code, out, err = secateur("diff", *sides)
        assert code == ExitCode.USAGE and out == "" and told in err
        assert f"where: {path}" in err and "hint: " in err and "Traceback" not in err


def test_a_plan_cannot_be_compared_with_a_run_that_has_none(tmp_path):
    PLAN.save(tmp_path / "plan.yaml")
    run = make_run(tmp_path / "a", "rank")
    code, out, err = secateur("diff", tmp_path / "plan.yaml", run)
    assert code == ExitCode.USAGE and out == "" and "there is no plan to compare with" in err
    assert f"where: {run}" in err and "step plan of this run has not finished" in err and f"secateur plan {run}" in err


def test_a_damaged_run_is_an_error_of_its_own_words(tmp_path):
    a, b = make_run(tmp_path / "a", "plan"), make_run(tmp_path / "b", "plan")
    (b / "recipe.yaml").write_text("just text\n")
    code, _, err = secateur("diff", a, b)
    assert code == ExitCode.USAGE and f"where: {b}" in err and "hint: " in err
    (a / "manifest.json").write_text("{")
    code, _, err = secateur("diff", a, a)
    assert code == ExitCode.USAGE and "the run's manifest is damaged" in err


def test_the_command_has_help():
    code, out, _ = secateur("diff", "--help")
    assert code == ExitCode.OK and "Usage" in out and "--json" in out
