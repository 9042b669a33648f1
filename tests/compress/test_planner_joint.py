"""Widths, implants and dropped blocks chosen at once: against exhaustive search, and against the rewritten network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint_nets import batches, blocks, captured, offered, table
from nets import NETS, rebatch
from oracle import assert_close, outputs
from torch import nn

from secateur import api
from secateur.compress.budget import Budget
from secateur.compress.cost.memory import memory_columns, peak
from secateur.compress.cost.model import CostModel, count
from secateur.compress.cost.whole import float_network, integer_network
from secateur.compress.implants.apply import rewrite
from secateur.compress.implants.columns import saving_terms
from secateur.compress.implants.loss import offer_implants
from secateur.compress.plan_file import dumps, loads
from secateur.compress.planner import dynamic, milp
from secateur.compress.planner.beside import Beside
from secateur.compress.planner.drops import measure_blocks
from secateur.compress.planner.limits import Costs
from secateur.compress.planner.plan import plan
from secateur.compress.planner.problem import Problem, make_choices
from secateur.compress.planner.repredict import repredict
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.errors import UserError
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.implant_form import Implant
from secateur.passes.program import Program


def problem(
    name: str, beside: Beside, seed: int, names: tuple[str, ...] = ("params", "macs"), align: int = 4
) -> Problem:
    """A problem whose limits are those of a random choice."""
    program = captured(name)
    choices = make_choices(program.groups, table(name, seed), align=align, floor=0.1, ignore=())
    limits = beside.extended(
        Costs(program, ORT_CPU, None),
        Costs(program, ORT_CPU, None).limits(Budget(**dict.fromkeys(names, "50%")), {}, None, 0.0),
    )
    free = Problem(
        beside.choices(program, choices, align),
        tuple(limit.column for limit in limits),
        np.full(len(limits), np.inf),
        beside.drops(program),
    )
    rng = np.random.default_rng(seed)
    somewhere = np.array([rng.integers(0, len(part.rise)) for part in free.parts])
    return replace(free, limits=free.costs(somewhere[None])[0])


def exhaustive(given: Problem) -> float:
    every = np.array(list(itertools.product(*[range(len(part.rise)) for part in given.parts])))
    rises = sum(part.rise[every[:, i]] for i, part in enumerate(given.parts))
    return float(rises[given.fits(every)].min(initial=np.inf))


def random_units(given: Problem, beside: Beside, rng: np.random.Generator) -> tuple[np.ndarray, dict, dict, list[str]]:
    """A random position, and the units, implants and blocks that it stands for."""
    position = np.array([rng.integers(0, len(part.rise)) for part in given.parts])
    keep, implants = {}, {}
    for choice, place in zip(given.choices, position, strict=False):
        first = choice.group.width - int(choice.widths[place])
        if first:
            keep[choice.group.name] = sorted(choice.order[first:].tolist())
        if choice.implanted is not None and choice.ranks is not None and choice.implanted[place] and beside.implants:
            units = choice.order[first : first + choice.implanted[place]]
            form = beside.implants.form
            implants[choice.group.name] = Implant(tuple(units.tolist()), form, int(choice.ranks[place]) or None)
    gone = [drop.name for drop, place in zip(given.drops, position[len(given.choices) :], strict=True) if place]
    return position, keep, implants, gone


@pytest.mark.parametrize("form", ["pointwise", "low-rank", "separable", "tucker"])
@pytest.mark.parametrize("name", ["resnet_a", "resnet_b"])
def test_counted_costs_are_those_of_the_rewritten_network(name: str, form: str) -> None:
    """Every level can be built, and costs what the terms say: units, stand-ins, blocks, and all of them together."""
    beside = Beside(offered(name, form), blocks(name))
    given = problem(name, beside, 0)
    rng = np.random.default_rng(3)
    for _ in range(6):
        position, keep, implants, gone = random_units(given, beside, rng)
        cost = count(rewrite(captured(name), keep, implants, gone).program)
        assert given.costs(position[None])[0] == pytest.approx([cost.params, cost.macs], abs=3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["implants", "blocks", "both"])
def test_the_integer_programme_finds_the_optimum(kind: str, seed: int) -> None:
    name = "resnet_b"
    beside = Beside(offered(name) if kind != "blocks" else None, blocks(name) if kind != "implants" else ())
    given = problem(name, beside, seed, align=8 if kind == "both" else 4)
    found = milp.solve(given)
    assert found is not None and given.fits(found.position[None])[0]
    best = exhaustive(given)
    assert found.rise == pytest.approx(best, rel=1e-6, abs=1e-9) and found.gap is not None and found.gap < 1e-5


@pytest.mark.parametrize("form", ["pointwise", "low-rank"])
def test_the_dynamic_programme_finds_the_optimum_of_a_chain(form: str) -> None:
    beside = Beside(offered("chain", form))
    for seed in range(6):
        given = problem("chain", beside, seed, ("macs",))
        assert dynamic.applies(given)
        found = dynamic.solve(given)
        assert found is not None and given.fits(found.position[None])[0]
        assert found.rise == pytest.approx(exhaustive(given), rel=1e-9, abs=1e-12)


def test_a_group_may_have_ranks_to_choose_from() -> None:
    found = offered("resnet_b", "low-rank")
    shares = {
        name: tuple(
            replace(offers[0], share=share, lost=lost * offers[0].lost) for share, lost in ((0.5, 0.5), (0.2, 1))
        )
        for name, offers in found.groups.items()
    }
    given = problem("resnet_b", Beside(replace(found, groups=shares)), 0)
    choice = max(given.choices, key=lambda c: len(c.rise))
    assert choice.implanted is not None and choice.ranks is not None
    most = choice.implanted.max()
    ranks = {int(r) for r, m in zip(choice.ranks, choice.implanted, strict=True) if m == most}
    assert ranks == {round(0.5 * most), round(0.2 * most)}
    assert len({tuple(amounts) for amounts in choice.amounts}) == len(choice.rise)
    # No level has more implanted units than kept ones, or is no better than pruning the same units.
    pruned = {int(w): r for w, m, r in zip(choice.widths, choice.implanted, choice.rise, strict=True) if not m}
    for width, count_, rise in zip(choice.widths, choice.implanted, choice.rise, strict=True):
        assert 0 <= count_ <= width and (not count_ or rise < pruned.get(int(width - count_), np.inf))


@pytest.mark.parametrize("name", ["resnet_a", "resnet_b", "preact"])
def test_budgets_hold_after_apply_and_mask_agrees(name: str) -> None:
    program, budget = captured(name), Budget(macs="35%", params="60%")
    made = plan(program, table(name), target=ORT_CPU, budget=budget, implants=offered(name), blocks=blocks(name))
    made.check(program)
    smaller, masked = api.apply(program, made), api.mask(program, made)
    cost = count(smaller)
    assert cost == made.planned and cost.macs <= 0.35 * made.dense.macs and cost.params <= 0.6 * made.dense.params
    inputs = (rebatch(program.example_args[0], 3, 5),)
    for actual, expected in zip(outputs(smaller, inputs), outputs(masked, inputs), strict=True):
        assert_close(actual, expected, 1e-5, "output")
    assert loads(dumps(made)) == made and repredict(program, made, table(name)) is made
    # More to choose from is never worse than widths alone.
    alone = plan(program, table(name), target=ORT_CPU, budget=budget, by="milp")
    assert made.delta_loss <= alone.delta_loss * 1.005


def test_implants_are_chosen_where_they_pay() -> None:
    """Filters that are 1×1 already lose nothing by their stand-ins: all of the budget is met by them."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)]
    with torch.no_grad():
        for conv in convs[:2]:
            conv.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    program = capture(
        nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2]).eval(), (torch.randn(2, 3, 8, 8),)
    )
    data = [(torch.randn(8, 3, 8, 8), torch.zeros(8)) for _ in range(2)]
    given = offer_implants(program, data)
    assert all(offer.lost.max() < 1e-3 for offers in given.groups.values() for offer in offers)
    scores = Sensitivity(
        "x", "loss", {g.name: Scores(np.ones(g.width), np.zeros(g.width)) for g in program.groups if not g.frozen}
    )
    made = plan(program, scores, target=ORT_CPU, budget=Budget(macs="50%"), implants=given)
    assert made.implants() and not made.keep() and made.delta_loss < 0.1
    fitted = api.fit_implants(program, made, data)
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert_close(fitted.module()(x), program.module()(x), 1e-2, "output")


def test_a_loss_is_the_energy_that_the_fit_misses() -> None:
    """Against a solve of all equations, behind the batch norm and the activation that follow the layer."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    net = nn.Sequential(conv, norm, nn.ReLU(), nn.Conv2d(6, 2, 1)).double().eval()
    x = torch.randn(10, 3, 5, 5, dtype=torch.float64)
    program = capture(net, (x[:2],))
    (offers,) = offer_implants(program, [(x, torch.zeros(10))], ridge=1e-12).groups.values()
    with torch.no_grad():
        y = conv(x).transpose(0, 1).flatten(1).T
        reads = F.pad(x.transpose(0, 1).flatten(1).T, (0, 1), value=1.0)
        found = reads @ torch.linalg.lstsq(reads, y).solution
        wanted, got = (torch.relu(norm(v.reshape(10, 5, 5, 6).permute(0, 3, 1, 2))) for v in (y, found))
        expected = (wanted - got).square().sum((0, 2, 3)) / wanted.square().sum((0, 2, 3))
    assert offers[0].lost == pytest.approx(expected.numpy(), rel=1e-5)


def test_blocks_are_measured_by_leaving_them_out() -> None:
    program, data = captured("preact"), batches("preact")
    found = measure_blocks(program, data, F.cross_entropy)

    def loss(net: Program) -> list[float]:
        with torch.no_grad():
            return [float(F.cross_entropy(net.module()(x), y)) for x, y in data]

    dense = np.array(loss(program))
    for offer in found:
        rises = np.array(loss(rewrite(program, {}, {}, [offer.block.name]).program)) - dense
        assert offer.delta_loss == pytest.approx(rises.mean(), abs=1e-6)
        assert offer.std_error == pytest.approx(rises.std(ddof=1) / len(rises) ** 0.5, abs=1e-6)


def test_at_a_temperature_a_block_costs_what_distillation_says() -> None:
    """T² times the divergence of the softened outputs, whatever the labels; a ranking at another one is refused."""
    net, (x,) = NETS["preact"]()
    exact, doubled = capture(net.double(), (x.double(),)), [(x.double(), y) for x, y in batches("preact")]
    for offer in measure_blocks(exact, doubled, F.cross_entropy, temperature=4.0):
        smaller = rewrite(exact, {}, {}, [offer.block.name]).program
        with torch.no_grad():
            pairs = [[F.log_softmax(p.module()(x) / 4, 1) for p in (smaller, exact)] for x, _ in doubled]
        expected = [16 * float(F.kl_div(*pair, reduction="batchmean", log_target=True)) for pair in pairs]
        assert offer.delta_loss == pytest.approx(np.mean(expected), rel=1e-6) and offer.delta_loss > 0
    program, data = captured("preact"), batches("preact")
    softened = measure_blocks(program, data, F.cross_entropy, temperature=4.0)
    scores = replace(table("preact", unit="score"), facts={"temperature": 4.0})
    options = {"target": ORT_CPU, "budget": Budget(macs="60%"), "blocks": softened}
    assert plan(program, scores, **options).blocks
    with pytest.raises(UserError, match="at temperature 2"):
        plan(program, replace(scores, facts={"temperature": 2.0}), **options)


@pytest.mark.parametrize("kind", ["implants", "blocks", "both"])
def test_size_and_memory_hold_in_the_built_network(kind: str) -> None:
    name = "resnet_a"
    program = captured(name)
    choose = {
        "implants": offered(name) if kind != "blocks" else None,
        "blocks": blocks(name) if kind != "implants" else (),
    }
    budget = Budget(size="32%", memory="20%")
    made = plan(program, table(name, 2), target=ORT_CPU, budget=budget, **choose)
    smaller = api.apply(program, made)
    size, dense = integer_network(smaller, ORT_CPU).size, float_network(program, ORT_CPU).size
    assert size <= 0.32 * dense and made.measured["size"]["bytes"] == size
    full = np.array([group.width for group in program.groups])
    left = peak(memory_columns(smaller), np.array([group.width for group in smaller.groups]))
    assert left <= 0.2 * peak(memory_columns(program, bytes_per_element=4), full)
    assert made.measured["memory"]["bytes"] == left


def test_a_block_saves_what_the_file_has_less() -> None:
    program = captured("resnet_b")
    costs, beside = Costs(program, ORT_CPU, None), Beside(blocks=blocks("resnet_b"))
    (limit,) = beside.extended(costs, costs.limits(Budget(size="50%"), {}, None, 0.0))
    given = Problem(
        make_choices(program.groups, table("resnet_b"), align=4, floor=0.1, ignore=()),
        (limit.column,),
        np.array([np.inf]),
        beside.drops(program),
    )
    for gone in ([0], [1], [0, 2]):
        position = given.first
        position[[len(given.choices) + i for i in gone]] = 1
        names = [beside.blocks[i].block.name for i in gone]
        size = integer_network(rewrite(program, {}, {}, names).program, ORT_CPU).size
        assert given.costs(position[None])[0, 0] == pytest.approx(size, abs=64)


def test_counts_without_implants_are_those_of_the_model() -> None:
    """Terms of implants are nothing where there are none."""
    program = captured("resnet_a")
    beside = Beside(offered("resnet_a"))
    terms = saving_terms(program, offered("resnet_a"), beside.quantities(program), {})
    given, model = problem("resnet_a", beside, 0), CostModel.of(program)
    assert len(terms["params"]) == len(terms["macs"]) > 0
    assert given.costs(given.first[None])[0] == pytest.approx([model.dense.params, model.dense.macs])
