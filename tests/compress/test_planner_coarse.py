"""Search from coarse to fine against the exact one, and times of many shapes at once against those of one."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import NETS
from torch import nn

from secateur.compress.cost.latency_table import LatencyTable
from secateur.compress.cost.model import CostModel
from secateur.compress.planner import coarse, dynamic, milp
from secateur.compress.planner.problem import Problem, make_choices
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.export.layer_model import LayerShape
from secateur.export.layer_times import Timing
from secateur.passes.capture import capture

CONV = LayerShape("conv", True, 0, 0, (8, 8), kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1))


class Wide(nn.Sequential):
    """Convolutions one after another, wide enough for dozens of widths each."""

    def __init__(self):
        widths = (3, 128, 256, 192, 160)
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, 4))


@functools.cache
def captured(name):
    net = (Wide().eval(), (torch.zeros(2, 3, 8, 8),)) if name == "wide" else NETS[name]()
    program = capture(*net)
    return program, CostModel.of(program)


def problem(name, seed, share=0.4, align=4):
    """Scores drawn at random, and a limit on the multiply-accumulates."""
    program, model = captured(name)
    rng = np.random.default_rng(seed)
    free = [group for group in program.groups if group.frozen is None]
    drawn = {g.name: Scores(rng.lognormal(0, 1.5, g.width), np.zeros(g.width)) for g in free}
    choices = make_choices(program.groups, Sensitivity("x", "loss", drawn, {}), align=align, floor=0.05, ignore=())
    found = Problem(choices, (model.columns()["macs"],), np.full(1, np.inf))
    return replace(found, limits=share * found.costs(found.first[None])[0])


@pytest.mark.parametrize("seed", range(4))
def test_wide_layers_are_planned_from_coarse_to_fine_almost_as_well_as_exactly(seed, monkeypatch):
    given = problem("wide", seed)
    best = dynamic.solve(given)
    assert best is not None and best.gap == 0
    monkeypatch.setattr(coarse, "MOST_VARIABLES", 1500)
    assert coarse.too_fine(given)
    found = milp.solve(given)
    assert found is not None and found.bound is None and found.solver == "milp, coarse to fine"
    assert given.fits(found.position[None])[0]
    # 1,500 variables are about 18 levels a group; after the last search no level in between is left out.
    assert best.rise * (1 - 1e-9) <= found.rise <= best.rise * 1.01


def test_the_number_of_variables_is_that_of_the_programme():
    for name in ("wide", "resnet_b", "densenet", "mobilenet"):
        given = problem(name, 0)
        axes = sum(len(sizes) for sizes in given.levels.sizes)
        assert coarse.variables(given) <= milp._Model(given).size <= coarse.variables(given) + axes


@pytest.mark.parametrize("name", ["resnet_b", "densenet", "preact"])
def test_networks_with_skips_are_planned_from_coarse_to_fine(name, monkeypatch):
    for seed in range(3):
        given = problem(name, seed, share=0.5, align=1)
        exact = milp.solve(given)
        monkeypatch.setattr(coarse, "MOST_VARIABLES", coarse.variables(given) // 3)
        found = milp.solve(given)
        monkeypatch.undo()
        assert exact is not None and found is not None and given.fits(found.position[None])[0]
        assert exact.rise * (1 - 1e-6) - 1e-9 <= found.rise <= exact.rise * 1.05


def test_the_least_and_the_nearest_are_found_from_coarse_to_fine(monkeypatch):
    given = problem("wide", 1)
    tight = replace(given, limits=0.5 * given.costs(given.last[None])[0])
    monkeypatch.setattr(coarse, "MOST_VARIABLES", 1500)
    assert milp.solve(tight) is None
    # Counts fall with every cut, so the last levels are the least.
    for position in (milp.nearest(tight), milp.least_cost(given, 0)):
        assert given.costs(position[None])[0, 0] == pytest.approx(given.costs(given.last[None])[0, 0])


def test_a_later_search_that_finds_something_worse_is_not_taken(monkeypatch):
    given = problem("wide", 2)
    monkeypatch.setattr(coarse, "MOST_VARIABLES", 1500)
    asked = []

    def worse_every_time(small, seconds):
        asked.append(small)
        return small.first if len(asked) == 1 else small.last

    found = coarse.from_coarse(given, worse_every_time, lambda p, at: p.rise(at), seconds=10.0)
    assert len(asked) == 2 and np.array_equal(found, given.first)


def grids(seed):
    """A table of random points: a grid, some points that rounds added, and widths to read it at."""
    rng = np.random.default_rng(seed)
    inputs, outputs = (np.sort(rng.choice(np.arange(4, 512, 4), n, replace=False)) for n in rng.integers(1, 6, 2))
    points = {(int(i), int(o)): float(rng.uniform(1, 9)) for i in inputs for o in outputs}
    points |= {(int(i), int(o)): 99.0 for i, o in rng.integers(1, 512, (seed % 4, 2))}
    if seed % 5 == 0:  # depthwise
        points = {(o, o): time for (_, o), time in points.items()}
    pairs = np.concatenate([rng.integers(1, 600, (60, 2)), np.array(list(points))])
    return LatencyTable({CONV: {pair: Timing(time, 0.1, 10) for pair, time in points.items()}}), pairs


@pytest.mark.parametrize("seed", range(40))
def test_times_of_many_widths_are_those_of_each(seed):
    table, pairs = grids(seed)
    each = [table.timing(CONV, (int(i), int(o))).micros for i, o in pairs]
    assert table.at(CONV, pairs).tolist() == pytest.approx(each, rel=1e-12, abs=1e-12)


def test_a_refined_table_forgets_what_it_read_before():
    table, _ = grids(1)
    before = table.timing(CONV, (10, 10)).micros
    refined = table.replaced({(CONV, (10, 10)): Timing(before + 5.0, 0.0, 1)})
    assert refined.timing(CONV, (10, 10)).micros == before + 5.0
    assert table.timing(CONV, (10, 10)).micros == before
