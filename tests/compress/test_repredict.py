"""The numbers of a plan that was edited by hand are those that the planner would have given."""

from dataclasses import replace

import numpy as np
import pytest
from nets import captured

from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.compress.plan import Plan
from secateur.compress.planner.plan import plan
from secateur.compress.planner.repredict import EDITED, edits, repredict
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.export.targets import ORT_CPU
from secateur.passes.prune import apply


@pytest.fixture(scope="module")
def made():
    program = captured("resnet_b")
    rng = np.random.default_rng(0)
    groups = {}
    for group in program.groups:
        if group.frozen is None:
            values = rng.lognormal(0, 1.5, group.width)
            groups[group.name] = Scores(values, 0.1 * values)
    table = Sensitivity("hap", "loss", groups, {"seed": 0})
    return program, table, plan(program, table, target=ORT_CPU, budget=Budget(macs="60%"))


def kept_whole(plan_: Plan, name: str) -> Plan:
    """What a person makes of a line: the units are gone, the numbers still stand there."""
    return replace(plan_, groups={**plan_.groups, name: replace(plan_.groups[name], removed=())})


def cut_groups(plan_: Plan) -> list[str]:
    return [name for name, line in plan_.groups.items() if line.removed]


def test_a_plan_as_it_was_made_stays_as_it_is(made):
    program, table, planned = made
    assert repredict(program, planned, table) is planned and not list(edits(planned, planned))


def test_an_edited_plan_has_the_numbers_of_what_it_lists(made):
    program, table, planned = made
    whole, shorter = cut_groups(planned)[:2]
    edited = kept_whole(planned, whole)
    rest = edited.groups[shorter].removed[:-1]
    edited = replace(edited, groups={**edited.groups, shorter: replace(edited.groups[shorter], removed=rest)})
    told = repredict(program, edited, table)
    cost = count(apply(program, edited.keep()))
    assert (told.planned.params, told.planned.macs) == (cost.params, cost.macs)
    alone = count(apply(program, {shorter: edited.groups[shorter].kept}))
    line, dense = told.groups[shorter], count(program)
    assert (line.params, line.macs) == (alone.params - dense.params, alone.macs - dense.macs)
    assert line.delta_loss == pytest.approx(table.groups[shorter].delta_loss[list(rest)].sum(), rel=5e-3)
    assert line.std_error == pytest.approx(np.linalg.norm(table.groups[shorter].std_error[list(rest)]), rel=5e-3)
    gone = told.groups[whole]
    assert (gone.delta_loss, gone.std_error, gone.params, gone.macs) == (0.0, 0.0, 0, 0)
    total = sum(table.groups[n].delta_loss[list(g.removed)].sum() for n, g in told.groups.items() if g.removed)
    assert told.delta_loss == pytest.approx(total, rel=5e-3) and told.delta_loss < planned.delta_loss
    assert {name for name, g in told.groups.items() if g.reason == EDITED} == {whole, shorter}
    assert repredict(program, told, table) is told
    sentences = list(edits(edited, told))
    assert whole in sentences[0] and shorter in sentences[0] and f"{cost.macs:,}" in sentences[0]


def test_a_budget_that_an_edit_breaks_is_named(made):
    program, table, planned = made
    edited = planned
    for name in cut_groups(planned):
        edited = kept_whole(edited, name)
    sentences = list(edits(edited, repredict(program, edited, table)))
    assert "does not meet the budget on macs" in sentences[1] and "60%" in sentences[1]


def test_a_plan_of_another_method_keeps_its_predicted_loss(made):
    program, table, planned = made
    name = cut_groups(planned)[0]
    edited = replace(kept_whole(planned, name), method="structured-chita")
    told = repredict(program, edited, table)
    assert told.delta_loss == planned.delta_loss and told.planned.macs > planned.planned.macs
