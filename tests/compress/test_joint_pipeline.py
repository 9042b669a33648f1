"""Implants and dropped blocks chosen in a run: planned from calibration data, edited, applied, healed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import secateur, tiny_recipe

from secateur import api
from secateur.compress.cost.model import count
from secateur.compress.plan import Plan
from secateur.passes.program import Program

JOINT = ("--set", "plan.implant=pointwise", "--set", "plan.ni_ratio=auto", "--set", "plan.blocks=drop")


def test_a_run_plans_widths_implants_and_blocks_at_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("heal", tiny_recipe(tmp_path), "--out", run, "--max-macs", "40%", *JOINT, "--set", "heal.method=ridge")
    code, _, err = secateur(*command)
    assert code == 0, err
    file = run / "03-plan" / "plan.yaml"
    plan = Plan.load(file)
    dense, cut = (Program.load(run / step / "program") for step in ("01-capture", "04-apply"))
    plan.check(dense)
    assert plan.settings["ni_ratio"] == "auto" and list(plan.blocks) == ["conv2"] and plan.implants()
    assert count(cut) == plan.planned and 0 < plan.planned.macs <= 0.4 * plan.dense.macs
    # A second time nothing is done again.
    code, _, err = secateur(*command)
    assert code == 0 and "plan kept" in err, err
    # The other choice for the block, by hand: what follows is made anew, and told.
    before, after = ("drop", "keep") if plan.drops() else ("keep", "drop")
    text = file.read_text()
    assert text.count(f"conv2: {{action: {before}, delta_loss") == 1
    file.write_text(text.replace(f"conv2: {{action: {before}, delta_loss", f"conv2: {{action: {after}, delta_loss"))
    code, _, err = secateur("heal", run)
    assert code == 0 and "the plan was edited" in err, err
    edited, cut = Plan.load(file), Program.load(run / "04-apply" / "program")
    assert edited.drops() != plan.drops() and count(cut) != plan.planned
    assert ("conv2.weight" in dict(cut.module().named_parameters())) == (not edited.drops())
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():  # the same structure as without data, its implants fitted
        assert api.apply(dense, edited).module()(x).shape == cut.module()(x).shape


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("plan.ni_ratio=auto",), "implant: pointwise"),
        (("plan.ni_ratio=auto", "plan.implant=center"), "implant: pointwise"),
        (("plan.ni_ratio=most", "plan.implant=pointwise"), "ni_ratio"),
        (("plan.ni_ratio=auto", "plan.implant=pointwise", "plan.by=gain"), "take by: auto"),
        (("plan.blocks=drop", "plan.by=structured-chita"), "take by: auto"),
        (("plan.blocks=drop", "plan.stages=2"), "plan.stages"),
        (("plan.blocks=drop", "plan.frontier=5"), "plan.frontier"),
        (("plan.blocks=drop", "plan.implant=pointwise"), "plan.ni_ratio: auto"),
        (("plan.blocks=drops",), "drop"),
    ],
)
def test_what_cannot_be_planned_jointly_is_refused_before_anything_runs(
    tmp_path: Path, settings: tuple[str, ...], told: str
) -> None:
    flags = [flag for setting in settings for flag in ("--set", setting)]
    code, _, err = secateur("plan", tiny_recipe(tmp_path), "--out", tmp_path / "run", *flags)
    assert code == 2 and told in err, err
    assert not (tmp_path / "run").exists()


def test_a_run_plans_a_latency_with_implants_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the real runtime; a loose budget, so that a busy machine meets it too. What was predicted is in the plan."""
    monkeypatch.setenv("SECATEUR_CACHE", str(tmp_path / "cache"))
    run, flags = tmp_path / "run", ("--max-macs", "40%", "--max-latency", "900%", "--set", "gates.latency.batches=[2]")
    unlimited = ("--set", "budget.params=null", "--set", "plan.latency_seconds=2")
    code, _, err = secateur("plan", tiny_recipe(tmp_path), "--out", run, *flags, *unlimited, *JOINT)
    assert code == 0 and "% predicted" in err and "% measured" in err, err
    plan = Plan.load(run / "03-plan" / "plan.yaml")
    assert plan.planned.macs <= 0.4 * plan.dense.macs and plan.implants()
    assert plan.measured["latency at batch 2"]["rounds"] >= 1
    (cached,) = (tmp_path / "cache" / "latency").glob("*.json")
    assert "concat" in cached.read_text()


def test_blocks_that_the_ranking_cannot_be_weighed_against_are_refused_before_they_are_measured(tmp_path: Path) -> None:
    flags = ("--set", "rank.method=magnitude", "--set", "plan.blocks=drop")
    code, _, err = secateur("plan", tiny_recipe(tmp_path), "--out", tmp_path / "run", "--max-macs", "60%", *flags)
    assert code == 2 and "this ranking gives scores" in err and "rank.method: gate-ggn" in err, err
    assert "blocks tried" not in err
