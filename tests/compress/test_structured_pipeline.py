"""structured-chita as a step of a run: an ordinary plan, healed in closed form, made again when its data change."""

from __future__ import annotations

from pathlib import Path

import torch
from runs import secateur, tiny_recipe

from secateur.compress.plan import Plan
from secateur.passes.program import Program
from secateur.passes.prune import apply

JOINT = ("--set", "plan.by=structured-chita", "--set", "plan.structured.stages=2", "--set", "heal.method=ridge")


def test_a_run_plans_jointly_and_heals_in_closed_form(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("heal", tiny_recipe(tmp_path), "--out", run, "--max-macs", "60%", *JOINT)
    code, _, err = secateur(*command)
    assert code == 0, err
    plan = Plan.load(run / "03-plan" / "plan.yaml")
    dense, cut = (Program.load(run / step / "program") for step in ("01-capture", "04-apply"))
    plan.check(dense)
    assert plan.method == "structured-chita" and 0 < plan.planned.macs <= 0.6 * plan.dense.macs
    assert plan.settings["search"] == "swap" and plan.settings["stages"] == 2
    # apply looks at no data: its weights are slices of the dense ones; healing solved for others.
    pure = apply(dense, plan.keep()).module().state_dict()
    assert all(torch.equal(tensor, pure[name]) for name, tensor in cut.module().state_dict().items())
    healed = Program.load(run / "05-heal" / "program").module().state_dict()
    assert any(not torch.equal(tensor, pure[name]) for name, tensor in healed.items() if name.endswith("weight"))
    # A second time nothing is done again.
    code, _, err = secateur(*command)
    assert code == 0 and "plan kept" in err, err


def test_bad_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    for setting, told in (("search=swaps", "swap"), ("stages=0", "stages"), ("stage=3", "stage")):
        code, _, err = secateur("plan", recipe, "--out", tmp_path / "run", "--set", f"plan.structured.{setting}")
        assert code == 2 and told in err, err
    assert not (tmp_path / "run").exists()
