"""Latency with implants and dropped blocks: against the rewritten network, exhaustive search, and what is measured."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from fake_stopwatch import FakeStopwatch
from joint_nets import blocks, captured, offered, table

from secateur import api
from secateur.compress.budget import Budget
from secateur.compress.cost.whole import integer_network
from secateur.compress.implants.apply import rewrite
from secateur.compress.planner import milp
from secateur.compress.planner.beside import Beside
from secateur.compress.planner.joint import _units
from secateur.compress.planner.limits import Costs
from secateur.compress.planner.plan import plan
from secateur.compress.planner.problem import Problem, make_choices
from secateur.errors import BudgetError
from secateur.export.layer_model import LayerShape, layer_model
from secateur.export.layer_times import time_layers
from secateur.export.targets import ORT_CPU

BATCH = 4


def problem(name: str, beside: Beside, stopwatch: FakeStopwatch, align: int = 8) -> Problem:
    """A problem whose one cost is latency, without a limit."""
    program, costs = captured(name), Costs(captured(name), ORT_CPU, stopwatch)
    choices = make_choices(program.groups, table(name), align=align, floor=0.1, ignore=())
    levels = beside.choices(program, choices, align)
    further = beside.latency(program).wanted(costs.sites, levels, stopwatch.batches)
    measured = costs.measure([choice.widths for choice in choices], further)
    limits = costs.limits(Budget(latency="50%"), measured.models, measured, 0.0)
    (limit,) = beside.extended(costs, limits, measured.models)
    return Problem(levels, (limit.column,), np.array([np.inf]), beside.drops(program))


def true_micros(name: str, given: Problem, position: np.ndarray, beside: Beside, stopwatch: FakeStopwatch) -> float:
    """Time of the network that a position stands for, rewritten and quantised."""
    keep, implants = _units(given, position, beside)
    places = position[len(given.choices) :]
    gone = [drop.name for drop, place in zip(given.drops, places, strict=True) if place]
    network = integer_network(rewrite(captured(name), keep, implants, gone).program, ORT_CPU)
    return stopwatch.micros(network.program, network.integer, BATCH)


@pytest.mark.parametrize(
    ("name", "form"),
    [("resnet_a", "pointwise"), ("resnet_b", "low-rank"), ("resnet_a", "separable"), ("resnet_b", "tucker")],
)
def test_latency_is_that_of_the_rewritten_network(name: str, form: str) -> None:
    """With layers that take inside a network what they take alone, every level is predicted exactly."""
    beside, stopwatch = Beside(offered(name, form), blocks(name)), FakeStopwatch()
    given = problem(name, beside, stopwatch)
    rng = np.random.default_rng(5)
    implanted = 0
    for _ in range(4):
        position = np.array([rng.integers(0, len(part.rise)) for part in given.parts])
        implanted += sum(int(c.implanted[p]) for c, p in zip(given.choices, position, strict=False) if c.further)
        expected = true_micros(name, given, position, beside, stopwatch)
        assert given.costs(position[None])[0, 0] == pytest.approx(expected, rel=1e-9)
    assert implanted


@pytest.mark.parametrize("kind", ["implants", "blocks", "both"])
def test_the_integer_programme_finds_the_optimum_within_a_latency(kind: str) -> None:
    name = "resnet_b"
    beside = Beside(offered(name) if kind != "blocks" else None, blocks(name) if kind != "implants" else ())
    free = problem(name, beside, FakeStopwatch())
    every = np.array(list(itertools.product(*[range(len(part.rise)) for part in free.parts])))
    rises = sum(part.rise[every[:, i]] for i, part in enumerate(free.parts))
    costs = free.costs(every)[:, 0]
    for share in (0.0, 0.1, 0.5):
        given = replace(free, limits=np.array([costs.min() + share * np.ptp(costs)]))
        found = milp.solve(given)
        assert found is not None and given.fits(found.position[None])[0]
        assert found.rise == pytest.approx(rises[costs <= given.limits[0] * (1 + 1e-9)].min(), rel=1e-6, abs=1e-9)


def slower_pointwise(node: str, shape: LayerShape) -> float:
    """Inside a network, 1×1 convolutions of implants take three times what they take alone."""
    return 3.0 if node.endswith("_implant") else 1.0


@pytest.mark.parametrize("inside", [lambda node, shape: 1.0, slower_pointwise])
def test_a_latency_holds_in_the_measured_network(inside) -> None:
    name = "resnet_a"
    program, stopwatch, notes = captured(name), FakeStopwatch(inside=inside), []
    options = {"implants": offered(name), "blocks": blocks(name), "note": notes.append}
    budget = Budget(latency="30%", params="70%")
    made = plan(program, table(name, 1), target=ORT_CPU, budget=budget, stopwatch=stopwatch, **options)
    found = made.measured[f"latency at batch {BATCH}"]
    predicted, measured = (float(found[key].rstrip("%")) for key in ("predicted", "measured"))
    assert measured <= 30.0 and predicted == pytest.approx(measured, rel=0.1)
    smaller = api.apply(program, made)
    network, dense = integer_network(smaller, ORT_CPU), integer_network(program, ORT_CPU)
    times = [stopwatch.micros(n.program, n.integer, BATCH) for n in (network, dense)]
    assert measured == pytest.approx(50 * times[0] / times[1], abs=0.06)
    assert made.implants() or made.drops()
    assert made.planned.params <= 0.7 * made.dense.params
    assert len(notes) == found["rounds"]


def test_more_to_choose_from_is_no_worse_than_widths_alone() -> None:
    name = "resnet_a"
    options = {"target": ORT_CPU, "budget": Budget(latency="35%"), "latency_margin": 0.0, "by": "milp"}
    alone = plan(captured(name), table(name), stopwatch=FakeStopwatch(), **options)
    made = plan(
        captured(name),
        table(name),
        stopwatch=FakeStopwatch(),
        implants=offered(name),
        blocks=blocks(name),
        **options,
    )
    assert made.delta_loss <= alone.delta_loss * 1.005


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_concatenation_is_timed_by_itself(integer: bool, last: bool) -> None:
    shape = LayerShape("concat", integer, 8, 4, (6,) if last else (6, 6), batch=2, last=last)
    session = onnxruntime.InferenceSession(
        layer_model(shape, ORT_CPU.scheme, ORT_CPU.opset).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    kind = (np.int8 if ORT_CPU.scheme.activation.signed else np.uint8) if integer else np.float32
    feeds = {v.name: rng.integers(0, 100, (2, *v.shape[1:])).astype(kind) for v in session.get_inputs()}
    (joined,) = session.run(None, feeds)
    assert np.array_equal(joined, np.concatenate(list(feeds.values()), axis=-1 if last else 1))
    assert time_layers([shape], ORT_CPU, seconds=1.0)[shape].micros > 0
    assert shape.key == f"{'int8' if integer else 'fp32'} concat 8>4 {'last at 6' if last else 'at 6x6'} batch 2"


def test_a_refusal_names_blocks_that_could_have_gone() -> None:
    """Without a budget that can be met by widths alone; with the blocks among the choices, it is."""
    name = "resnet_a"
    budget = Budget(latency="20%")
    options = {"target": ORT_CPU, "budget": budget, "latency_margin": 0.0}
    with pytest.raises(BudgetError, match=r"plan\.blocks: drop, which lets any of"):
        plan(captured(name), table(name), stopwatch=FakeStopwatch(), **options)
    made = plan(captured(name), table(name), stopwatch=FakeStopwatch(), blocks=blocks(name), **options)
    assert made.drops()
