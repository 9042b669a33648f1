"""Plans against exhaustive search, against counting the rewritten network, and the refusals."""

import functools
import itertools
import re
from dataclasses import replace
from importlib import import_module

import nets
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from secateur.compress.budget import Budget
from secateur.compress.cost.model import CostModel, count
from secateur.compress.planner.greedy import cut, greedy, threshold
from secateur.compress.planner.plan import plan
from secateur.compress.planner.problem import Problem, grid_step, make_choices
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.errors import BudgetError, ExitCode, UserError
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.labels.groups import Group, Member, Role
from secateur.passes.prune import apply


@functools.cache
def captured(name):
    program = nets.captured(name)
    return program, CostModel.of(program)


def scores(program, seed, negative=False):
    rng = np.random.default_rng(seed)
    groups = {}
    for group in program.groups:
        if group.frozen is None:
            values = rng.lognormal(0, 1.5, group.width) * rng.lognormal(0, 1)
            if negative:
                values *= rng.choice([-1, 1, 1], group.width)
            groups[group.name] = Scores(values, 0.1 * np.abs(values))
    return Sensitivity("hap", "loss", groups, {"seed": seed})


def make(name="resnet_b", seed=0, negative=False, **options):
    program, _ = captured(name)
    options = {"target": ORT_CPU, "budget": Budget(macs="60%"), **options}
    return program, plan(program, scores(program, seed, negative), **options)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["resnet_a", "resnet_b", "mobilenet", "densenet", "plain", "resnext"]),
    seed=st.integers(0, 1000),
    negative=st.booleans(),
    by=st.sampled_from(["gain", "sensitivity"]),
    params=st.none() | st.floats(5, 110),
    macs=st.none() | st.floats(5, 110),
    floor=st.sampled_from([0.0, 0.1, 0.5]),
    align=st.sampled_from([1, 4, 8]),
)
def test_a_plan_keeps_its_promises(name, seed, negative, by, params, macs, floor, align):
    assume(params or macs)
    program, model = captured(name)
    given_ = {k: f"{v}%" for k, v in (("params", params), ("macs", macs)) if v}
    budget, target = Budget(**given_), replace(ORT_CPU, align_int8=align)
    try:
        _, made = make(name, seed, negative, by=by, budget=budget, floor=floor, target=target)
    except BudgetError:
        return
    # The budgets hold on the network that apply really returns, and the prediction of its cost is exact.
    smaller = count(apply(program, made.keep(), allow_unchanged=True))
    assert smaller == made.planned and made.dense == model.dense
    for key, text in given_.items():
        assert getattr(smaller, key) <= float(text[:-1]) / 100 * getattr(made.dense, key) + 1
    table = scores(program, seed, negative)
    for group in program.groups:
        line, step = made.groups[group.name], grid_step(group, align)
        kept = group.width - len(line.removed)
        if group.frozen is not None:
            assert not line.removed and line.reason.startswith("frozen")
            continue
        assert kept == group.width or (kept % step == 0 and kept >= max(step, floor * group.width))
        values = table.groups[group.name].delta_loss
        gone, stay = values[list(line.removed)], values[list(line.kept)]
        # The least sensitive units go, in that order.
        assert (np.diff(gone) >= 0).all() and (not len(gone) or gone.max() <= stay.min())
        assert line.delta_loss == pytest.approx(gone.sum(), rel=1e-2, abs=1e-9)
        errors = table.groups[group.name].std_error[list(line.removed)]
        assert line.std_error == pytest.approx(np.sqrt((errors**2).sum()), rel=1e-2, abs=1e-12)
    made.check(program)


def problem(name, seed, limits):
    program, model = captured(name)
    choices = make_choices(program.groups, scores(program, seed), align=4, floor=0.1, ignore=())
    return Problem(choices, tuple(model.columns().values()), np.asarray(limits))


@pytest.mark.parametrize("name", ["resnet_b", "plain", "mobilenet", "preact"])
def test_greedy_is_near_the_optimum_of_exhaustive_search(name):
    _, model = captured(name)
    dense = np.array([model.dense.params, model.dense.macs])
    rng = np.random.default_rng(0)
    ratios = []
    for trial in range(40):
        free = problem(name, trial, dense)
        every = np.array(list(itertools.product(*[range(len(c.widths)) for c in free.choices])))
        costs, rises = free.costs(every), np.array([free.rise(p) for p in every])
        limits = (costs.min(0) + rng.uniform(0.02, 0.95, 2) * (dense - costs.min(0))).astype(np.int64)
        if trial % 3 < 2:
            limits[trial % 3] = dense[trial % 3]
        limited = Problem(free.choices, free.columns, limits)
        optimum = rises[(costs <= limits).all(1)].min()
        found = greedy(limited)
        assert limited.fits(found[None])[0]
        assert limited.fits(threshold(limited)[None])[0]
        ratios.append((limited.rise(found) + 1e-12) / (optimum + 1e-12))
    assert min(ratios) >= 1 - 1e-9
    assert max(ratios) < 1.25 and np.mean(ratios) < 1.02


def test_nothing_more_could_be_given_back():
    program, made = make(seed=3)
    model = CostModel.of(program)
    widths = {name: line.width - len(line.removed) for name, line in made.groups.items()}
    for name, line in made.groups.items():
        if line.removed and line.delta_loss > 0:
            wider = min(line.width, widths[name] + 4)
            assert model.cost({**widths, name: wider}).macs > 0.6 * made.dense.macs


def test_sensitivity_is_one_threshold_for_all_groups():
    program, made = make(seed=5, by="sensitivity", floor=0.0, target=replace(ORT_CPU, align_int8=1))
    table = scores(program, 5)
    gone = [table.groups[n].delta_loss[list(line.removed)] for n, line in made.groups.items() if line.removed]
    # Groups that would be emptied keep their best unit though it lies under the threshold.
    stay = [
        table.groups[n].delta_loss[list(line.kept)]
        for n, line in made.groups.items()
        if n in table.groups and len(line.kept) > 1
    ]
    assert np.concatenate(gone).max() <= np.concatenate(stay).min()


def test_free_cuts_are_taken_by_what_they_save():
    """Negative scores must not make a tiny saving look better than a large one."""
    program, model = captured("resnet_b")
    table = scores(program, 0)
    saved = {n: model.dense.macs - model.cost({n: 4}).macs for n in table.groups}
    small, large = min(saved, key=saved.__getitem__), max(saved, key=saved.__getitem__)
    assert saved[large] > 2 * saved[small]
    groups = {
        n: Scores(np.full(len(s.delta_loss), -1e-3 if n in (small, large) else 1.0), s.std_error)
        for n, s in table.groups.items()
    }
    choices = make_choices(program.groups, replace(table, groups=groups), align=4, floor=0.1, ignore=())
    limits = np.array([model.dense.params, model.dense.macs - saved[large]])
    found = cut(Problem(choices, tuple(model.columns().values()), limits), np.zeros(len(choices), dtype=np.int64))
    assert [c.group.name for c, p in zip(choices, found, strict=True) if p] == [large]


@pytest.mark.parametrize(
    ("multiplicities", "align", "step"), [((1,), 4, 4), ((4,), 4, 1), ((2,), 8, 4), ((6,), 4, 2), ((4, 1), 4, 4)]
)
def test_the_grid_counts_positions_not_units(multiplicities, align, step):
    """Every axis that the units are computed on stays on the grid; what reads them does not count."""
    members = [Member(f"w{i}", 0, Role.PRODUCE, np.arange(16 * m).reshape(16, m)) for i, m in enumerate(multiplicities)]
    reader = Member("r", 1, Role.CONSUME, np.arange(48).reshape(16, 3))
    assert grid_step(Group("g", 16, (*members, reader)), align) == step


def test_a_budget_that_already_holds_keeps_everything():
    _, made = make(budget=Budget(macs="100%", params="1G"))
    assert made.keep() == {} and made.planned == made.dense and made.delta_loss == 0


def test_the_same_input_gives_the_same_plan():
    assert make(seed=7)[1] == make(seed=7)[1]


def test_ignored_groups_stay_whole():
    _, made = make(ignore=("layer1.*", "conv1"))
    for name in ("conv1", "layer1.0.conv1"):
        assert not made.groups[name].removed and made.groups[name].reason.startswith("ignored")
    assert made.keep()


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match="matches no group") as caught:
        make(ignore=("layer9.*",))
    assert "layer1.0.conv1" in caught.value.hint


def test_groups_without_a_score_stay_whole():
    program, _ = captured("resnet_b")
    table = scores(program, 0)
    some = {n: s for n, s in table.groups.items() if n != "layer2.0.conv1"}
    made = plan(program, replace(table, groups=some), target=ORT_CPU, budget=Budget(macs="70%"))
    assert made.groups["layer2.0.conv1"].reason == "no score"


@pytest.mark.parametrize("budget", [{"macs": "2%"}, {"params": "1k"}, {"params": "3%", "macs": "0.001M"}])
def test_an_infeasible_budget_names_the_nearest_that_can_be_met(budget):
    with pytest.raises(BudgetError, match="cannot be met") as caught:
        make(budget=Budget(**budget))
    assert caught.value.code == ExitCode.GATE
    nearest = dict(re.findall(r"--max-(\w+) (\S+?)[;\s]", caught.value.hint))
    assert set(nearest) == set(budget)
    make(budget=Budget(**nearest))  # as typed
    # A little less cannot be met.
    for name, text in nearest.items():
        unit = text.lstrip("0123456789.")
        less = {**nearest, name: f"{0.995 * float(text.removesuffix(unit))}{unit}"}
        with pytest.raises(BudgetError):
            make(budget=Budget(**less))


@pytest.mark.parametrize("budget", [{}, {"latency": "50%"}, {"accuracy_drop": 1.0}])
def test_a_plan_needs_a_budget_it_can_plan_for(budget):
    with pytest.raises(UserError, match=next(iter(budget), "no budget")) as caught:
        make(budget=Budget(**budget))
    assert "--max-macs" in caught.value.hint


def test_arguments_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"did you mean gain\?"):
        make(by="gains")
    for floor in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match="floor"):
            make(floor=floor)


def test_a_joint_choice_is_no_search_and_says_where_it_is():
    with pytest.raises(UserError) as caught:
        make(by="structured-chita")
    (where,) = re.findall(r"(secateur[\w.]+)\.(\w+)", str(caught.value))
    assert callable(getattr(import_module(where[0]), where[1]))


def test_sensitivities_of_another_program_are_refused():
    program, _ = captured("resnet_b")
    for wrong in (
        Sensitivity("x", "loss", {"nowhere": Scores(np.ones(8), np.zeros(8))}),
        Sensitivity("x", "loss", {"conv1": Scores(np.ones(9), np.zeros(9))}),
    ):
        with pytest.raises(UserError, match=r"nowhere|conv1") as caught:
            plan(program, wrong, target=ORT_CPU, budget=Budget(macs="60%"))
        assert caught.value.hint == "rank this program"


@pytest.mark.parametrize("layers", [(), (torch.nn.Linear(8, 2),)])
def test_a_network_of_which_nothing_can_go_is_refused_with_the_reason(layers):
    program = capture(torch.nn.Sequential(torch.nn.Flatten(), *layers), torch.zeros(2, 2, 4))
    nothing = Sensitivity("hap", "loss", {}, {})
    assert not plan(program, nothing, target=ORT_CPU, budget=Budget(macs="100%")).keep()
    if program.groups:
        with pytest.raises(BudgetError, match="nothing in this network can be removed") as caught:
            plan(program, nothing, target=ORT_CPU, budget=Budget(macs="50%"))
        assert "output of the network" in caught.value.why


def test_scores_below_zero_are_not_cut_beyond_the_budget():
    program, model = captured("resnet_b")
    noise = {g.name: Scores(-np.ones(g.width), np.ones(g.width)) for g in program.groups if g.frozen is None}
    table = Sensitivity("hap", "loss", noise, {})
    made = plan(program, table, target=replace(ORT_CPU, align_int8=1), budget=Budget(macs="60%"))
    widths = {name: group.width - len(group.removed) for name, group in made.groups.items()}
    for name, group in made.groups.items():
        if group.removed:
            wider = model.cost({**widths, name: widths[name] + 1})
            assert wider.macs > 0.6 * model.dense.macs >= made.planned.macs
    # The plan still says what the estimates add up to.
    assert made.delta_loss == -sum(len(group.removed) for group in made.groups.values())
