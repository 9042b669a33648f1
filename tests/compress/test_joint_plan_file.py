"""Plans with implants and blocks as people edit them, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from joint_nets import batches, blocks, captured, offered, table

from secateur import api
from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.compress.implants.loss import offer_implants
from secateur.compress.plan import Plan
from secateur.compress.plan_file import dumps, loads
from secateur.compress.planner.plan import plan
from secateur.compress.planner.repredict import edits, repredict
from secateur.errors import BudgetError, UserError
from secateur.export.targets import ORT_CPU
from secateur.passes.program import Program


def joint(name: str = "resnet_b", **options) -> tuple[Program, Plan]:
    program = captured(name)
    options = {"budget": Budget(macs="35%"), "implants": offered(name), "blocks": blocks(name), **options}
    return program, plan(program, table(name), target=ORT_CPU, **options)


def test_what_cannot_be_planned_jointly_is_refused() -> None:
    program, given = captured("resnet_b"), offered("resnet_b")
    options = {"target": ORT_CPU, "budget": Budget(macs="50%")}
    for by in ("gain", "sensitivity"):
        with pytest.raises(UserError, match=r"chooses widths alone[\s\S]*plan.by: auto"):
            plan(program, table("resnet_b"), implants=given, by=by, **options)
    with pytest.raises(UserError, match="needs something that measures it"):
        plan(program, table("resnet_b"), implants=given, target=ORT_CPU, budget=Budget(latency="50%"))
    with pytest.raises(UserError, match=r"this ranking gives scores[\s\S]*rank.method: gate-ggn"):
        plan(program, table("resnet_b", unit="score"), blocks=blocks("resnet_b"), **options)
    with pytest.raises(BudgetError, match=r"cannot be met[\s\S]*--max-macs"):
        plan(program, table("resnet_b"), target=ORT_CPU, budget=Budget(macs="0.1%"), implants=given)
    for form, init in (("center", "least-squares"), ("pointwise", "zeros")):
        with pytest.raises(UserError, match="nothing to choose between such implants and pruning"):
            offer_implants(program, batches("resnet_b"), form, init=init)


def test_a_dropped_block_has_nothing_cut_inside() -> None:
    program, made = joint()
    assert made.drops()
    inner = [
        g
        for g in program.groups
        for offer in blocks("resnet_b")
        if offer.block.holds(g) and offer.block.name in made.drops()
    ]
    assert inner and all(
        made.groups[g.name].action == "keep" and "goes with the block" in made.groups[g.name].reason for g in inner
    )
    name, width = inner[0].name, inner[0].width
    wrong = replace(made, groups={**made.groups, name: replace(made.groups[name], removed=(0,))})
    with pytest.raises(UserError, match=rf"units of {name} in it are cut[\s\S]*keep: {width}/{width}"):
        wrong.check(program)
    unknown = replace(made, blocks={**made.blocks, "layer9.1": made.blocks[made.drops()[0]]})
    with pytest.raises(UserError, match=r"no residual block is called 'layer9.1'"):
        unknown.check(program)


def test_an_edited_plan_is_predicted_anew() -> None:
    """A block taken back and one dropped by hand; an implanted unit removed."""
    program, made = joint()
    scores = table("resnet_b").groups
    text = dumps(made)
    gone, stays = made.drops()[0], next(name for name, block in made.blocks.items() if not block.dropped)
    text = text.replace(f"{gone}: {{action: drop", f"{gone}: {{action: keep", 1)
    edited = loads(text)
    told = repredict(program, edited, table("resnet_b"))
    assert told.drops() == made.drops()[1:] and told.planned == count(api.apply(program, edited))
    assert told.delta_loss == pytest.approx(made.delta_loss - made.blocks[gone].delta_loss, rel=1e-2)
    assert any("the plan was edited" in sentence for sentence in edits(edited, told))
    cut = replace(made, blocks={**made.blocks, stays: replace(made.blocks[stays], dropped=True)})
    holder = {offer.block.name: offer.block for offer in blocks("resnet_b")}[stays]
    whole = {
        g.name: replace(made.groups[g.name], removed=(), implant=None, lost=None)
        for g in program.groups
        if holder.holds(g)
    }
    cut = replace(cut, groups={**cut.groups, **whole})
    assert repredict(program, cut, table("resnet_b")).planned == count(api.apply(program, cut))

    _, made = joint(blocks=())
    name, line = next((n, g) for n, g in made.groups.items() if len(g.implanted) > 1)
    unit, *rest = line.implanted
    assert line.implant is not None and line.lost is not None
    moved = replace(line, removed=(*line.removed, unit), implant=replace(line.implant, units=tuple(rest)))
    told = repredict(program, replace(made, groups={**made.groups, name: moved}), table("resnet_b"))
    expected = scores[name].delta_loss[list(moved.removed)].sum() + line.lost * scores[name].delta_loss[rest].sum()
    assert told.groups[name].delta_loss == pytest.approx(expected, rel=1e-2)


TEXT = """\
secateur: plan/1
target: ort-cpu
budget: {macs: 50%}
ranking: {method: hap, unit: loss, seed: 0}
planner: {by: auto, floor: 0.1}
program: abc
dense: {params: 200, macs: 9000}
planned: {params: 110, macs: 3240}
delta_loss: 3.1e-03 ± 4e-04
blocks:
  layer1.0: {action: drop, delta_loss: 0.012 ± 3.1e-03, params: -40, macs: -900}
  layer1.1: {action: keep}
groups:
  conv1: {action: implant, keep: 4/8, implant: {form: pointwise, lost: 0.25, units: [6, 2]}, removed: [3, 7]}
"""


def test_the_text_reads_as_it_looks() -> None:
    read = loads(TEXT)
    assert read.drops() == ("layer1.0",) and list(read.blocks) == ["layer1.0", "layer1.1"]
    block = read.blocks["layer1.0"]
    assert (block.delta_loss, block.std_error, block.params, block.macs) == (0.012, 3.1e-3, -40, -900)
    assert read.groups["conv1"].lost == 0.25 and loads(dumps(read)) == read


@pytest.mark.parametrize(
    ("old", "new", "what", "hint"),
    [
        ("action: drop", "action: dorp", "did you mean drop?", "keep, drop"),
        ("action: keep}", "acton: keep}", "unknown key acton", "action"),
        ("lost: 0.25", "lost: 1.25", "lost: 1.25 is no share", "leave it out"),
        ("lost: 0.25", "lost: much", "lost: much is no share", "leave it out"),
        ("0.012 ± 3.1e-03", "much", "is no estimate", "delta_loss"),
    ],
)
def test_an_edit_that_cannot_be_is_told_apart(old: str, new: str, what: str, hint: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(UserError) as caught:
        loads(TEXT.replace(old, new))
    assert what in caught.value.what and hint in caught.value.hint
