"""Plans on latency, size and memory: a runtime whose times are known, so that what a plan should be is known too."""

import functools
import itertools
import re
from dataclasses import replace

import nets
import numpy as np
import pytest
import torch
from fake_stopwatch import BETWEEN, FakeStopwatch, blocks
from torch import nn

from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.compress.cost.stopwatch import OrtStopwatch
from secateur.compress.cost.whole import integer_network
from secateur.compress.planner.limits import Costs
from secateur.compress.planner.order import removal_order
from secateur.compress.planner.plan import plan, plan_with_frontier
from secateur.compress.planner.rounds import MOST_ROUNDS, TOLERANCE
from secateur.compress.planner.search import SEARCHES, exactly
from secateur.compress.planner.stages import plan_in_stages
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.errors import BudgetError, EnvironmentLacksError, UserError
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.prune import apply


class Net(nn.Module):
    """A stem, a residual block and a head, wide enough for blocks of 16 to matter."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.inner = nn.Conv2d(32, 48, 3, padding=1)
        self.outer = nn.Conv2d(48, 32, 3, padding=1)
        self.neck = nn.Conv2d(32, 64, 3, stride=2, padding=1)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(torch.relu(self.neck(x)).mean((2, 3)))


@functools.cache
def captured():
    torch.manual_seed(0)
    return capture(Net().eval(), torch.randn(2, 3, 8, 8))


def scores(seed=0, like=None):
    rng = np.random.default_rng(seed)
    free = [group for group in captured().groups if group.frozen is None]
    values = {g.name: rng.lognormal(0, 1, g.width) if like is None else np.full(g.width, like) for g in free}
    return Sensitivity("x", "loss", {name: Scores(v, 0.1 * v) for name, v in values.items()}, {"seed": seed})


def make(stopwatch=None, seed=0, table=None, **options):
    notes = []
    given = {"target": ORT_CPU, "latency_margin": 0.0, "note": notes.append, **options}
    made = plan(captured(), table or scores(seed), stopwatch=stopwatch or FakeStopwatch(), **given)
    return made, notes


def share_of(made, stopwatch, batch=4):
    """The true latency of a plan as a share of the dense network's."""
    network = integer_network(apply(captured(), made.keep(), allow_unchanged=True), ORT_CPU)
    dense = integer_network(captured(), ORT_CPU)
    return stopwatch.shares(dense, network)[batch].median


def widths(made):
    return {name: line.width - len(line.removed) for name, line in made.groups.items()}


@pytest.mark.parametrize("share", [0.45, 0.35, 0.25, 0.15])
def test_a_latency_budget_is_met_at_the_least_loss(share):
    made, notes = make(budget=Budget(latency=f"{100 * share}%"), floor=0.0)
    assert share_of(made, FakeStopwatch()) <= share + 1e-9
    assert len(notes) == 1 and "predicted" in notes[0] and "measured" in notes[0]
    found = made.measured["latency at batch 4"]
    assert found["predicted"] == found["measured"]
    # Exhaustive search over all widths on the grid, with the true times of the rewritten networks' layers.
    free = [g for g in captured().groups if g.frozen is None]
    table, best = scores(), np.inf
    sums = {n: np.concatenate([[0], np.cumsum(np.sort(s.delta_loss))]) for n, s in table.groups.items()}
    grid = [[g.width, *range(g.width - 4, 3, -4)] for g in free]
    for choice in itertools.product(*grid):
        rise = sum(sums[g.name][g.width - w] for g, w in zip(free, choice, strict=True))
        if rise < best and formula(dict(zip((g.name for g in free), choice, strict=True))) <= share + 1e-9:
            best = rise
    assert made.delta_loss == pytest.approx(best, rel=1e-2)
    assert made.optimality["gap"] <= 1e-5


@functools.cache
def family(name):
    sites = {"stem": 0, "inner": 1, "outer": 2, "neck": 3, "head": 4}
    from secateur.compress.cost.sites import layer_sites

    integer = integer_network(captured(), ORT_CPU).integer
    return replace(layer_sites(captured(), integer)[sites[name]].family, batch=4)


def formula(w):
    """Latency by hand, from the widths of the stem's, the inner and the neck's group."""
    stem, inner, neck = w["stem"], w["inner"], w["neck"]

    def total(stem, inner, neck):
        pairs = {"stem": (3, stem), "inner": (stem, inner), "outer": (inner, stem), "neck": (stem, neck)}
        pairs["head"] = (neck, 5)
        return BETWEEN + sum(blocks(replace(family(n), inputs=i, outputs=o)) for n, (i, o) in pairs.items())

    return total(stem, inner, neck) / (2 * total(32, 48, 64))


def test_cuts_that_make_a_layer_slower_are_not_paid_for():
    """Off multiples of 16 the layers of this runtime are slower, so that a plan by macs is not one for latency."""
    made, _ = make(budget=Budget(latency="30%"), table=scores(like=1.0))
    assert all(width % 16 == 0 or name == "head" for name, width in widths(made).items())


@pytest.mark.parametrize(("factor", "networks"), [(1.0, 1), (1.6, 1), (2.5, 2)])
def test_a_wrong_table_is_refined_at_the_chosen_shapes(factor, networks):
    """A layer that is slower in the network than alone: the same plan where the budget still holds, else another."""

    def slower(node, shape):
        return factor if node == "inner" and shape.inputs < 32 else 1.0

    stopwatch = FakeStopwatch(inside=slower)
    made, notes = make(stopwatch, budget=Budget(latency="30%"))
    assert networks <= len(notes) <= MOST_ROUNDS
    assert share_of(made, stopwatch) <= 0.30 + 1e-9
    found = made.measured["latency at batch 4"]
    assert (found["rounds"] > 1) == (factor > 1)
    predicted, measured = (float(found[key].rstrip("%")) for key in ("predicted", "measured"))
    if factor < 2:  # beyond, the rounds may be used up
        assert abs(predicted / measured - 1) <= TOLERANCE
    assert measured / 100 == pytest.approx(share_of(made, stopwatch), abs=1e-3)


def test_a_gain_below_noise_is_not_made(monkeypatch):
    """A microsecond for each channel: the table tells four of them apart, or with much noise only forty."""

    def flat(shape):
        return 1000.0 + shape.outputs

    table = scores(like=1.0)
    cheap = replace(table, groups={**table.groups, "neck": Scores(np.full(64, 1e-6), np.zeros(64))})
    quiet, _ = make(FakeStopwatch(alone=flat), table=cheap, budget=Budget(latency="49.98%"))
    assert len(quiet.groups["neck"].removed) == 4
    noisy, _ = make(FakeStopwatch(alone=flat, mad=50.0), table=cheap, budget=Budget(latency="49.98%"))
    # Four times of the table are involved, of the neck and of the head behind it: the least gain is 4 * 9.3 us.
    assert len(noisy.groups["neck"].removed) == 40
    # All widths within noise are struck out at once: a wide group must not take a search for each.
    searches = []
    monkeypatch.setitem(SEARCHES, "auto", lambda *given: searches.append(given) or exactly(*given))
    again, _ = make(FakeStopwatch(alone=flat, mad=50.0), table=cheap, budget=Budget(latency="49.98%"))
    assert again.groups == noisy.groups and len(searches) <= 4
    # Another budget that needs the small cut keeps it.
    both, _ = make(FakeStopwatch(alone=flat, mad=50.0), table=cheap, budget=Budget(latency="90%", params="97%"))
    assert len(both.groups["neck"].removed) == 8 and both.planned.params <= 0.97 * both.dense.params


@pytest.mark.parametrize(
    "budget",
    [
        {"latency": "35%", "macs": "50%"},
        {"latency": "40%", "params": "40%", "size": "18%"},
        {"memory": "15%", "size": "15%"},
        {"macs": "50%", "memory": "20%"},
    ],
)
def test_any_set_of_budgets_holds_on_the_rewritten_network(budget):
    made, _ = make(budget=Budget(**budget))
    smaller = apply(captured(), made.keep(), allow_unchanged=True)
    for name in ("params", "macs"):
        if name in budget:
            limit = float(budget[name][:-1]) / 100 * getattr(made.dense, name)
            assert getattr(count(smaller), name) <= limit + 1
    if "latency" in budget:
        assert share_of(made, FakeStopwatch()) <= float(budget["latency"][:-1]) / 100 + 1e-9
    if "size" in budget:
        from secateur.compress.cost.whole import float_network

        dense, real = float_network(captured(), ORT_CPU).size, integer_network(smaller, ORT_CPU).size
        assert real <= float(budget["size"][:-1]) / 100 * dense
        assert made.measured["size"]["bytes"] == pytest.approx(real, abs=100)
    if "memory" in budget:
        assert float(made.measured["memory"]["predicted"][:-1]) <= float(budget["memory"][:-1])


def test_a_budget_in_milliseconds_holds_at_the_first_batch_size():
    stopwatch = FakeStopwatch(batches=(4, 16))
    network = integer_network(captured(), ORT_CPU)
    full = stopwatch.micros(captured(), network.integer, 4)
    made, _ = make(stopwatch, budget=Budget(latency=f"{0.7 * full:.3f}us"))
    smaller = apply(captured(), made.keep())
    assert stopwatch.micros(smaller, network.integer, 4) <= 0.7 * full + 1e-3


def test_a_share_holds_at_every_batch_size():
    def warm(shape):
        return blocks(shape) + (0.0 if shape.batch > 4 else 100.0 + 2.0 * shape.outputs)

    stopwatch = FakeStopwatch(alone=warm, batches=(4, 64))
    made, _ = make(stopwatch, budget=Budget(latency="40%"))
    assert share_of(made, stopwatch, 4) <= 0.4 and share_of(made, stopwatch, 64) <= 0.4
    assert set(made.measured) == {"latency at batch 4", "latency at batch 64"}


@pytest.mark.parametrize(
    "budget",
    [
        {"latency": "3%"},
        {"latency": "3%", "macs": "1%"},
        {"latency": "3%", "params": "70%"},
        {"size": "1%", "macs": "2%"},
        {"latency": "20us"},
        {"memory": "100B", "params": "3%"},
    ],
)
def test_a_refusal_names_budgets_that_can_be_met(budget):
    with pytest.raises(BudgetError, match="cannot be met") as caught:
        make(budget=Budget(**budget))
    nearest = dict(re.findall(r"--max-(\w+) ([^\s;]+)", caught.value.hint))
    assert nearest and set(nearest) <= set(budget)
    make(budget=Budget(**{**budget, **nearest}))  # as typed
    assert caught.value.why


def test_budgets_that_only_conflict_with_each_other_are_told_as_a_pair():
    """In this runtime the neck is faster the more it computes; parameters like the opposite."""

    def odd(shape):
        return 500.0 + (5.0 * (64 - shape.outputs) if shape.stride == (2, 2) else shape.inputs)

    stopwatch = FakeStopwatch(alone=odd)
    make(stopwatch, budget=Budget(latency="49%"))
    make(stopwatch, budget=Budget(params="3%"))
    with pytest.raises(BudgetError, match="cannot be met together") as caught:
        make(stopwatch, budget=Budget(latency="49%", params="3%"))
    assert "each alone can be met" in caught.value.why
    nearest = dict(re.findall(r"--max-(\w+) ([^\s;]+)", caught.value.hint))
    make(stopwatch, budget=Budget(**{"latency": "49%", "params": "3%", **nearest}))


def test_the_margin_is_kept_free():
    made, _ = make(budget=Budget(latency="30%"), latency_margin=0.2)
    assert share_of(made, FakeStopwatch()) <= 0.24 + 1e-9


def test_latency_needs_something_that_measures_it():
    with pytest.raises(UserError, match="latency") as caught:
        plan(captured(), scores(), target=ORT_CPU, budget=Budget(latency="50%"))
    assert "--max-macs" in caught.value.hint


@pytest.mark.parametrize("budget", [{"macs": "50%"}, {"latency": "30%", "params": "60%"}])
def test_the_frontier_falls_and_each_point_is_a_plan(budget):
    options = {"target": ORT_CPU, "stopwatch": FakeStopwatch(), "latency_margin": 0.0}
    made, found = plan_with_frontier(9, captured(), scores(), budget=Budget(**budget), **options)
    assert found is not None and len(found.points) >= 4
    losses = [point.delta_loss for point in found.points]
    varied = "macs" if "macs" in budget else "latency at batch 4"
    costs = [point.costs[varied] for point in found.points]
    assert losses == sorted(losses) and costs == sorted(costs, reverse=True)
    assert all(point.optimal for point in found.points)
    if "params" in budget:
        assert all(point.costs["params"] <= 0.6 for point in found.points)
    # No point of the frontier beats the plan in both.
    reached = made.planned.macs / made.dense.macs if varied == "macs" else share_of(made, FakeStopwatch())
    assert not any(p.delta_loss < 0.99 * made.delta_loss and p.costs[varied] <= reached for p in found.points)


def quadratic(matrix, units):
    return matrix[np.ix_(units, units)].sum()


def test_interactions_decide_the_order_inside_a_group():
    rng = np.random.default_rng(0)
    jacobian = rng.normal(size=(40, 7))
    matrix = jacobian.T @ jacobian
    order, rises = removal_order(matrix.diagonal(), matrix)
    for gone in range(1, 8):
        assert rises[gone] == pytest.approx(quadratic(matrix, order[:gone]))
        # The last unit is the one that adds least to those before it.
        others = [u for u in range(7) if u not in order[: gone - 1]]
        assert rises[gone] <= min(quadratic(matrix, [*order[: gone - 1], u]) for u in others) + 1e-9


def test_two_units_that_do_the_same_do_not_go_together():
    """Each alone can go, as the other remains: scores by themselves cannot say so."""
    matrix = np.diag([1.0, 1.0, 2.0]) + 4 * (np.eye(3)[[1, 0, 2]] * [[1], [1], [0]])
    assert list(removal_order(matrix.diagonal(), None)[0]) == [0, 1, 2]
    order, rises = removal_order(matrix.diagonal(), matrix)
    assert list(order) == [0, 2, 1] and rises.tolist() == [0, 1, 3, 12]


def test_a_plan_says_the_joint_rise_of_what_it_removes():
    table = scores()
    units = sum(len(s.delta_loss) for s in table.groups.values())
    rng = np.random.default_rng(3)
    jacobian = rng.normal(size=(200, units))
    matrix = jacobian.T @ jacobian / 200
    start, groups = 0, {}
    for name, group in table.groups.items():
        diagonal = matrix.diagonal()[start : start + len(group.delta_loss)]
        groups[name] = Scores(diagonal.copy(), np.zeros(len(diagonal)))
        start += len(diagonal)
    joint = replace(table, groups=groups, interactions=matrix)
    made, _ = make(table=joint, budget=Budget(macs="50%"))
    gone, start = [], 0
    for name, group in groups.items():
        gone += [start + unit for unit in made.groups[name].removed]
        start += len(group.delta_loss)
    assert made.delta_loss == pytest.approx(quadratic(matrix, gone), rel=1e-2)


def part_maker(budget, **options):
    """Plans parts of a cut, as the pipeline does."""
    costs = Costs(captured(), ORT_CPU, FakeStopwatch())

    def make_part(table, part):
        given = {"target": ORT_CPU, "budget": budget, "costs": costs, "stopwatch": costs.stopwatch, **options}
        return plan_with_frontier(0, captured(), table, part=part, latency_margin=0.0, **given)[0]

    return make_part


@pytest.mark.parametrize("budget", [{"macs": "40%"}, {"latency": "25%"}])
def test_one_stage_is_an_ordinary_plan(budget):
    staged = plan_in_stages(captured(), scores(), part_maker(Budget(**budget)), None, stages=1)
    made, _ = make(budget=Budget(**budget))
    assert staged.plan.keep() == made.keep() and staged.plan.delta_loss == pytest.approx(made.delta_loss, rel=1e-2)


@pytest.mark.parametrize("budget", [{"macs": "40%"}, {"latency": "25%"}])
def test_later_stages_follow_the_later_rankings(budget):
    asked, notes = [], []

    def rank_again(program):
        """What is left, ranked the other way round."""
        asked.append(count(program).macs)
        groups = {}
        for group in program.groups:
            if group.frozen is None:
                values = 1.0 + np.arange(group.width)[::-1] + 100.0 * len(asked)
                groups[group.name] = Scores(values, np.zeros(group.width))
        return Sensitivity("x", "loss", groups, {})

    table = scores(like=1.0)
    staged = plan_in_stages(captured(), table, part_maker(Budget(**budget)), rank_again, stages=3, note=notes.append)
    made = staged.plan
    assert len(asked) == len(notes) == 2 and asked[0] > asked[1] > made.planned.macs
    assert made.settings["stages"] == 3 and len(staged.stages) == 3
    if "macs" in budget:
        assert made.planned.macs <= 0.4 * made.dense.macs
    else:
        assert share_of(made, FakeStopwatch()) <= 0.25 + 1e-9
    # Units of the first stage cost 1 each, those of the later ones more than 100 and 200.
    rises = [stage["delta_loss"] for stage in staged.stages]
    assert rises == sorted(rises) and rises[0] < 100 < rises[1]
    assert made.delta_loss == pytest.approx(sum(line.delta_loss for line in made.groups.values()), rel=1e-2)
    # Within a group, what went first is listed first.
    first = plan_in_stages(captured(), table, part_maker(Budget(**budget)), rank_again, stages=3).plan
    assert first.keep() == made.keep()


@pytest.mark.parametrize("name", ["transposed", "conv3d", "shared"])
def test_other_kinds_of_layers_are_measured_and_planned(name):
    """For real, but briefly; whether numbers come out right is for quiet machines."""
    program = nets.captured(name)
    rng = np.random.default_rng(0)
    free = [group for group in program.groups if group.frozen is None]
    table = {group.name: Scores(rng.lognormal(0, 1, group.width), np.zeros(group.width)) for group in free}
    stopwatch = OrtStopwatch(ORT_CPU, batches=(2,), seconds=1, compare_seconds=0.1, most_seconds=0.1, cached=False)
    budget = Budget(latency="2000%", macs="70%", memory="90%")
    made = plan(program, Sensitivity("x", "loss", table, {}), target=ORT_CPU, budget=budget, stopwatch=stopwatch)
    assert made.planned.macs <= 0.7 * made.dense.macs
    assert float(made.measured["latency at batch 2"]["predicted"][:-1]) > 0


def test_latency_of_a_target_without_a_timer_here_is_refused():
    with pytest.raises(EnvironmentLacksError, match="cannot be planned for") as caught:
        OrtStopwatch(replace(ORT_CPU, name="other", runtime="otherrt"))
    assert "macs" in caught.value.hint
