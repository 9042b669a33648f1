"""Exact searches against exhaustive search, and the tabulated costs against the models that they tabulate."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import NETS
from torch import nn

from secateur.compress.cost.model import CostModel
from secateur.compress.cost.terms import Column, Term
from secateur.compress.planner import dynamic, milp
from secateur.compress.planner.problem import Problem, make_choices
from secateur.compress.planner.search import SEARCHES
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.passes.capture import capture


class Chain(nn.Sequential):
    """Convolutions one after another: every group has its two neighbours."""

    def __init__(self):
        widths = (3, 16, 24, 16, 12)
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


@functools.cache
def captured(name):
    net = (Chain().eval(), (torch.zeros(2, 3, 8, 8),)) if name == "chain" else NETS[name]()
    program = capture(*net)
    return program, CostModel.of(program)


def scores(program, seed):
    rng = np.random.default_rng(seed)
    free = [group for group in program.groups if group.frozen is None]
    return Sensitivity(
        "x", "loss", {g.name: Scores(rng.lognormal(0, 1.5, g.width), np.zeros(g.width)) for g in free}, {}
    )


def jagged(model, seed):
    """A cost that does not fall with every cut: each product of axes times a factor that depends on both sizes."""
    rng = np.random.default_rng(seed)
    terms = []
    for term in model.columns()["macs"].terms:
        factors = rng.uniform(0.5, 1.5, (40,) * len(term.axes))

        def value(at, factors=factors, term=term):
            return term.value(at) * factors[tuple(at.T % 40)]

        terms.append(Term(term.axes, value))
    return Column("time", tuple(terms), 100.0)


def problem(name, seed, *, align=4):
    """A problem whose limits are those of the costs at random widths, so that it can be solved."""
    program, model = captured(name)
    choices = make_choices(program.groups, scores(program, seed), align=align, floor=0.1, ignore=())
    columns = (model.columns()["params"], jagged(model, seed))
    free = Problem(choices, columns, np.full(2, np.inf))
    rng = np.random.default_rng(seed)
    somewhere = np.array([rng.integers(0, len(c.widths)) for c in choices])
    return replace(free, limits=free.costs(somewhere[None])[0])


def exhaustive(given):
    """The least rise within the limits."""
    every = np.array(list(itertools.product(*[range(len(c.widths)) for c in given.choices])))
    rises = sum(c.rise[every[:, i]] for i, c in enumerate(given.choices))
    return rises[given.fits(every)].min(initial=np.inf)


@pytest.mark.parametrize("name", ["chain", "resnet_a", "densenet", "mobilenet", "resnext", "preact"])
def test_tabulated_costs_are_those_of_the_model(name):
    program, model = captured(name)
    choices = make_choices(program.groups, scores(program, 0), align=4, floor=0.1, ignore=())
    given = Problem(choices, tuple(model.columns().values()), np.zeros(2))
    rng = np.random.default_rng(1)
    positions = np.array([[rng.integers(0, len(c.widths)) for c in choices] for _ in range(50)])
    assert given.costs(positions) == pytest.approx(model.costs(given.widths(positions)), rel=1e-12)


@pytest.mark.parametrize("name", ["chain", "resnet_a", "resnet_b", "densenet", "mobilenet", "preact"])
def test_the_integer_programme_finds_the_optimum(name):
    for seed in range(4):
        given = problem(name, seed, align=8 if name in ("densenet",) else 4)
        found = milp.solve(given)
        assert found is not None and given.fits(found.position[None])[0]
        best = exhaustive(given)
        assert found.rise == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert found.bound <= best * (1 + 1e-6) + 1e-9 and found.gap < 1e-5


def test_the_dynamic_programme_finds_the_optimum_of_a_chain():
    for seed in range(12):
        given = problem("chain", seed)
        given = replace(given, columns=given.columns[1:], limits=given.limits[1:])
        assert dynamic.applies(given)
        found = dynamic.solve(given)
        assert found is not None and given.fits(found.position[None])[0]
        assert found.rise == pytest.approx(exhaustive(given), rel=1e-9) and found.gap == 0


def test_the_dynamic_programme_says_where_it_does_not_apply():
    two_budgets = problem("chain", 1)
    residual = problem("resnet_b", 1)
    assert not dynamic.applies(two_budgets)
    assert not dynamic.applies(replace(residual, columns=residual.columns[1:], limits=residual.limits[1:]))
    # A limit that nothing exceeds does not count.
    loose = replace(two_budgets, limits=np.array([1e12, two_budgets.limits[1]]))
    assert dynamic.applies(loose)
    assert dynamic.solve(loose).rise == pytest.approx(exhaustive(loose), rel=1e-9)


@pytest.mark.parametrize("search", ["auto", "milp"])
@pytest.mark.parametrize("name", ["chain", "resnet_a"])
def test_what_cannot_be_met_has_no_solution(name, search):
    given = problem(name, 0)
    every = np.array(list(itertools.product(*[range(len(c.widths)) for c in given.choices])))
    least = given.costs(every).min(axis=0)
    assert SEARCHES[search](replace(given, limits=least * 0.999), 20.0) is None


@pytest.mark.parametrize("name", ["chain", "resnet_b"])
def test_least_cost_and_the_nearest_choice_agree_with_exhaustive_search(name):
    given = problem(name, 3)
    every = np.array(list(itertools.product(*[range(len(c.widths)) for c in given.choices])))
    costs = given.costs(every)
    position = milp.least_cost(replace(given, limits=np.array([np.inf, 1.0])), 1)
    assert given.costs(position[None])[0, 1] == pytest.approx(costs[:, 1].min(), rel=1e-6)
    within = costs[costs[:, 0] <= given.limits[0]]
    position = milp.least_cost(given, 1)
    assert given.costs(position[None])[0, 1] == pytest.approx(within[:, 1].min(), rel=1e-6)
    tight = replace(given, limits=costs.min(axis=0) * [1.1, 0.8])
    position = milp.nearest(tight)
    overrun = (given.costs(position[None])[0] / tight.limits).max()
    assert overrun == pytest.approx((costs / tight.limits).max(axis=1).min(), rel=1e-6)


def test_the_same_problem_has_the_same_solution():
    given = problem("resnet_a", 2)
    assert (milp.solve(given).position == milp.solve(given).position).all()


def test_nothing_is_printed_while_the_solver_runs(capfd):
    import os

    print("before")
    milp.solve(problem("resnet_a", 1))
    with milp._no_output():
        os.write(1, b"of the solver")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"
