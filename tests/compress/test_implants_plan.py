"""Plans with implants: HAP's choice of units, exact costs, and the file."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from nets import captured, rebatch
from oracle import assert_close, outputs

from secateur.api import apply, mask
from secateur.compress.budget import Budget
from secateur.compress.cost.model import Cost, count
from secateur.compress.implants.apply import apply_plan
from secateur.compress.implants.select import plan_within, with_implants
from secateur.compress.plan import GroupPlan, Plan
from secateur.compress.plan_file import dumps, loads
from secateur.compress.planner.plan import plan
from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.table import Sensitivity
from secateur.errors import UserError
from secateur.export.targets import ORT_CPU
from secateur.passes.implant_form import FORMS, Implant
from secateur.passes.program import Program


@functools.cache
def ranked(name: str) -> tuple[Program, Sensitivity, Plan]:
    program = captured(name)
    table = rank(program, method="random", seed=1)
    return program, table, plan(program, table, target=ORT_CPU, budget=Budget(macs="50%"), by="gain")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["resnet_a", "resnet_b", "plain"])
def test_planned_cost_is_that_of_the_rewritten_network(name: str, form: str) -> None:
    program, table, cut = ranked(name)
    made = with_implants(program, cut, table, ni_ratio=0.6, form=form, align=1)
    assert made.implants() and made.planned != cut.planned
    smaller = apply_plan(program, made).program
    assert count(smaller) == made.planned
    for group, line in made.groups.items():
        if line.implant is not None:
            alone = replace(made, groups={**{n: GroupPlan(g.width) for n, g in made.groups.items()}, group: line})
            cost = count(apply_plan(program, alone).program)
            assert (line.params, line.macs) == (cost.params - made.dense.params, cost.macs - made.dense.macs)


def test_the_most_sensitive_of_the_removed_are_implanted() -> None:
    program, table, cut = ranked("resnet_b")
    made = with_implants(program, cut, table, ni_ratio=0.25, align=1)
    scores = {n: s.delta_loss for n, s in table.groups.items()}
    removed = [scores[name][u] for name, line in cut.groups.items() for u in line.removed]
    implanted = [scores[name][u] for name, line in made.groups.items() for u in line.implanted]
    left = [scores[name][u] for name, line in made.groups.items() for u in line.removed]
    assert len(implanted) == round(0.25 * len(removed)) and min(implanted) >= max(left)
    assert sorted(implanted + left) == sorted(removed)
    for name, line in made.groups.items():
        assert line.whole == len(cut.groups[name].kept) and list(line.removed) == [
            u for u in cut.groups[name].removed if u not in line.implanted
        ]
    assert made.delta_loss == pytest.approx(sum(left), rel=0.01)


def test_implants_of_a_group_lie_on_the_grid() -> None:
    program, table, cut = ranked("resnet_b")
    made = with_implants(program, cut, table, ni_ratio=0.5)
    assert made.implants() and all(len(i.units) % ORT_CPU.align_int8 == 0 for i in made.implants().values())
    assert with_implants(program, cut, table, ni_ratio=0.0).groups == cut.groups


def test_the_budget_holds_with_implants() -> None:
    program, table, _ = ranked("resnet_b")
    budget = Budget(macs="50%", params="70%")

    def make(within: Budget) -> Plan:
        return plan(program, table, target=ORT_CPU, budget=within, by="gain")

    made = plan_within(make, program, table, budget, ni_ratio=0.4, form="pointwise")
    assert made.implants() and made.budget == budget.given()
    assert made.planned.macs <= made.dense.macs // 2 and made.planned.params <= 0.7 * made.dense.params
    assert sum(len(line.removed) for line in made.groups.values()) > 0
    assert loads(dumps(made)) == made


@pytest.mark.parametrize("init", ["least-squares", "center", "zeros"])
def test_apply_and_mask_of_a_plan_agree(init: str) -> None:
    program, table, cut = ranked("resnet_a")
    made = replace(with_implants(program, cut, table, ni_ratio=0.5, init=init), implant_init=init)
    smaller, masked = apply(program, made), mask(program, made)
    inputs = (rebatch(program.example_args[0], 3, 5),)
    for actual, expected in zip(outputs(smaller, inputs), outputs(masked, inputs), strict=True):
        assert_close(actual, expected, 1e-5, "output")


TEXT = """\
secateur: plan/1
target: ort-cpu
budget: {macs: 50%}
ranking: {method: hap, unit: loss, seed: 0}
planner: {by: gain, floor: 0.1}
program: abc
dense: {params: 200, macs: 9000}
planned: {params: 110, macs: 3240}
delta_loss: 3.1e-03 ± 4e-04
implants: {init: zeros}
groups:
  conv1: {action: implant, keep: 4/8, implant: {form: low-rank, rank: 2, units: [6, 2]}, removed: [3, 7]}
  conv2: {action: implant, keep: 6/8, implant: {form: pointwise, units: [0, 5]}}
"""


def test_the_text_reads_as_it_looks() -> None:
    p = loads(TEXT)
    assert p.implant_init == "zeros" and p.structural_init == "zeros" and p.planned == Cost(110, 3240)
    one = p.groups["conv1"]
    assert (one.kept, one.whole, one.action) == ((0, 1, 2, 4, 5, 6), 4, "implant")
    assert p.implants() == {"conv1": Implant((6, 2), "low-rank", 2), "conv2": Implant((0, 5))}
    assert p.keep() == {"conv1": (0, 1, 2, 4, 5, 6)}
    assert loads(dumps(p)) == p


@pytest.mark.parametrize(
    ("old", "new", "what", "hint"),
    [
        ("units: [6, 2]", "units: [6, 3]", "unit 3 is removed and implanted", "one of the two"),
        ("units: [6, 2]", "units: [6, 8]", "there is no unit 8", ""),
        ("units: [6, 2]", "units: [6, 6]", "unit 6 is implanted twice", "once"),
        ("units: [6, 2]", "units: []", "no unit is implanted", "take implant away"),
        ("units: [6, 2]", "units: six", "units is not a list of unit numbers", "units: ["),
        ("keep: 4/8", "keep: 6/8", "keep and removed disagree", "to remove none: keep: 6/8"),
        ("keep: 4/8", "keep: 5/8", "keep and removed disagree", "removed: [3]"),
        ("keep: 4/8", "keep: 8/8", "keep and removed disagree", "between 0 and 6"),
        ("action: implant, keep: 4/8", "action: prune, keep: 4/8", "contradicts", "write action: implant"),
        ("action: implant, keep: 6/8", "action: keep, keep: 6/8", "contradicts", "take implant away"),
        ("rank: 2, ", "", "needs a rank", "rank: 4"),
        ("rank: 2", "rank: 0", "needs a rank", "rank: 4"),
        ("form: pointwise", "form: pointwise, rank: 2", "has no rank", ""),
        ("form: low-rank", "form: lowrank", "did you mean low-rank?", "pointwise"),
        ("form: low-rank", "from: low-rank", "unknown key from (did you mean form?)", ""),
        ("init: zeros", "init: zero", "did you mean zeros?", "least-squares"),
    ],
)
def test_an_edit_that_cannot_be_is_told_apart(old: str, new: str, what: str, hint: str) -> None:
    assert TEXT.count(old) == 1
    with pytest.raises(UserError) as caught:
        loads(TEXT.replace(old, new))
    assert what in caught.value.what and hint in caught.value.hint


def test_a_plan_whose_implants_do_not_fit_is_refused() -> None:
    program, _, cut = ranked("mobilenet")
    name = "features.3.conv.0"  # its kernel has size 1
    line = cut.groups[name]
    wrong = replace(cut, groups={**cut.groups, name: replace(line, removed=(), implant=Implant((0, 1)))})
    with pytest.raises(UserError, match=rf"{name} cannot have implants of the form pointwise[\s\S]*why"):
        wrong.check(program)


def test_a_share_out_of_range_is_refused() -> None:
    program, table, cut = ranked("plain")
    with pytest.raises(UserError, match="ni_ratio is a share"):
        with_implants(program, cut, table, ni_ratio=1.5)


def test_negative_scores_are_scores() -> None:
    """The most sensitive are chosen by score, whatever its sign."""
    program, table, cut = ranked("plain")
    lowered = replace(table, groups={n: replace(s, delta_loss=s.delta_loss - 5) for n, s in table.groups.items()})
    one, two = (with_implants(program, cut, t, ni_ratio=0.3, align=1) for t in (table, lowered))
    assert one.implants() == two.implants() and two.delta_loss < 0
