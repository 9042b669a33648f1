"""`secateur plan` as it is typed: a budget on latency measured for real on a tiny network, the frontier, a refusal."""

import json

import pytest
from runs import secateur, tiny_recipe

from secateur.compress.plan import Plan
from secateur.compress.planner.frontier import Frontier
from secateur.errors import ExitCode


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A run up to its plan; a loose budget, so that a busy machine meets it too."""
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(folder / "cache"))
        flags = ("--max-latency", "400%", "--max-macs", "70%", "--frontier", "--set", "gates.latency.batches=[2]")
        result = secateur("plan", tiny_recipe(folder), "--out", folder / "run", "--set", "budget.params=null", *flags)
        again = secateur("plan", folder / "run", "--json")
    return folder, result, again


def test_the_plan_says_what_was_predicted_and_measured(planned):
    folder, (code, _, err), _ = planned
    assert code == ExitCode.OK, err
    made = Plan.load(folder / "run" / "03-plan" / "plan.yaml")
    found = made.measured["latency at batch 2"]
    assert all(float(found[key].rstrip("%")) > 0 for key in ("predicted", "measured"))
    assert made.optimality["search"] in ("dp", "milp") and made.optimality["gap"] <= 1e-5
    assert made.planned.macs <= 0.7 * made.dense.macs
    assert "% predicted" in err and "% measured" in err


def test_layer_times_are_cached(planned):
    folder, _, _ = planned
    (cached,) = (folder / "cache" / "latency").glob("*.json")
    assert len(json.loads(cached.read_text())["layers"]) > 10


def test_the_frontier_is_printed_and_kept(planned):
    folder, (_, out, _), _ = planned
    found = Frontier.load(folder / "run" / "03-plan" / "frontier.json")
    # How many points there are depends on measured times; test_planner_latency.py tests it on times that are given.
    assert found.varied == "latency" and found.points
    assert "latency at batch 2" in out and "groups cut" in out


def test_a_plan_that_is_kept_is_not_measured_again(planned):
    _, _, (code, out, err) = planned
    assert code == ExitCode.OK and "kept" in err
    assert json.loads(out)["steps"]["plan"]["latency at batch 2"]["rounds"] >= 1


def test_a_plan_is_made_again_if_latency_is_asked_for_at_another_batch_size(tmp_path):
    from secateur.recipe_file import load_recipe
    from secateur.steps import STEPS

    def key(batches, **budget):
        overrides = {"gates.latency.batches": batches, **{f"budget.{name}": v for name, v in budget.items()}}
        return STEPS["plan"].files(load_recipe(tiny_recipe(tmp_path), overrides))

    assert key([1], latency="50%") != key([1, 8], latency="50%")
    assert key([1]) == key([1, 8])  # without a budget on it, nothing in the plan depends on the gate


def test_budgets_that_cannot_be_met_exit_with_3_and_name_those_that_can(tmp_path):
    flags = ("--set", "budget.params=null", "--max-size", "2%", "--max-memory", "1B")
    code, out, err = secateur("plan", tiny_recipe(tmp_path), "--out", tmp_path / "run", *flags)
    assert code == ExitCode.GATE and not out
    assert "cannot be met" in err and "--max-size" in err and "--max-memory" in err


def test_a_plan_in_stages_ranks_again_and_says_what_it_cost(tmp_path):
    code, out, err = secateur(
        "plan", tiny_recipe(tmp_path), "--out", tmp_path / "run", "--set", "plan.stages=2", "--json"
    )
    assert code == ExitCode.OK, err
    stages = json.loads(out)["steps"]["plan"]["stages"]
    assert len(stages) == 2 and stages[0]["seconds"] >= 0
    assert "stage 1 of 2" in err and "ranked again" in err
    made = Plan.load(tmp_path / "run" / "03-plan" / "plan.yaml")
    assert made.settings["stages"] == 2 and made.planned.macs <= 0.6 * made.dense.macs


def test_latency_stays_with_its_gate_where_layers_cannot_be_timed(tmp_path):
    flags = ("--out", tmp_path / "run", "--max-latency", "50%", "--max-macs", "100%", "--set", "target=tensorrt")
    code, _, err = secateur("plan", tiny_recipe(tmp_path), *flags)
    assert code == ExitCode.OK and "only gated" in err
    alone = (
        "--out",
        tmp_path / "alone",
        "--max-latency",
        "50%",
        "--set",
        "target=tensorrt",
        "--set",
        "budget.macs=null",
    )
    code, _, err = secateur("plan", tiny_recipe(tmp_path), *alone)
    assert code == ExitCode.ENVIRONMENT and "cannot be planned for" in err
