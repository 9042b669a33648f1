"""Planning with implants and blocks beside widths: what cannot be counted is read off the network as planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...errors import BudgetError
from ...passes.implant_form import Implant, Implants
from ...passes.program import Program
from ..budget import Budget
from ..cost.latency import LatencyModel
from ..cost.memory import memory_columns, peak
from ..cost.sites import layer_sites
from ..cost.whole import Network, integer_network
from ..implants.apply import rewrite
from .beside import Beside
from .joint_latency import JointLatency
from .limits import WORDS, Costs, Limit, Measured
from .problem import Choice, Problem
from .rounds import TOLERANCE, Attempt, latency_reached, part_of_the_way, solve_within, told
from .search import COUNTED
from .solution import Solution

MOST_ROUNDS = 8


def joint_attempts(
    choices: tuple[Choice, ...],
    costs: Costs,
    budget: Budget,
    beside: Beside,
    *,
    by: str,
    seconds: float,
    margin: float,
    part: float,
    note: Callable[[str], None],
) -> tuple[Attempt, ...]:
    """Plans; where more than counts is limited, the network as planned is built, and planned again if it is over.

    Counts are exact. Sizes and memory leave out what implants add to the graph (see `Beside.extended`), so their limits
    are lowered by what the built network has too much. Latency is measured, and its model learns from it (see
    `rounds`).

    Args:
        choices: Allowed widths.
        costs: Costs of the program.
        budget: The budget.
        beside: Implants and blocks to choose from.
        by: Name of the search, an exact one.
        seconds: Time limit of each search.
        margin: Share of a latency budget that is kept free.
        part: Share of the way from the whole network's costs to the limits; only at 1 is the network built.
        note: Told what was measured.

    Raises:
        BudgetError: The budgets cannot be met.
    """
    program, latency = costs.program, beside.latency(costs.program)
    levels, drops = beside.choices(program, choices, costs.target.align_int8), beside.drops(program)
    measured: Measured | None = None
    if budget.latency is not None:
        further = latency.wanted(costs.sites, levels, costs.timer.batches)
        measured = costs.measure([choice.widths for choice in choices], further)
    models = dict(measured.models) if measured is not None else {}
    made: list[Attempt] = []
    over: np.ndarray | float = 0.0
    tightened = 1.0
    for number in range(MOST_ROUNDS):
        limits = beside.extended(costs, costs.limits(budget, models, measured, 1 - tightened * (1 - margin)), models)
        columns, bounds = tuple(limit.column for limit in limits), np.array([limit.bound for limit in limits])
        problem = part_of_the_way(Problem(levels, columns, bounds, drops), part)
        problem = replace(problem, limits=problem.limits - over)
        within = tuple(replace(limit, bound=float(b)) for limit, b in zip(limits, problem.limits, strict=True))
        try:
            solution = _settled(program, problem, solve_within(problem, within, by, seconds), beside)
        except BudgetError:
            if not number:
                raise
            break
        attempt = Attempt(problem, limits, solution, _predicted(problem, solution, latency, models, measured), {})
        if part < 1.0 or all(limit.budget in COUNTED for limit in limits):
            return (attempt,)
        if made and np.array_equal(solution.position, made[-1].solution.position):
            last = made[-1]  # it is measured already, and the model has learnt from it
            made.append(replace(attempt, shares=last.shares, holds=last.holds, built=last.built))
            break
        network = _rewritten(program, problem, solution.position, beside)
        quantised = integer_network(network, costs.target)
        shares = costs.timer.shares(costs.dense_network, quantised) if measured is not None else {}
        attempt = replace(attempt, shares=shares, built=_built(network, quantised, limits))
        excess, reached = _excess(attempt), latency_reached(limits, shares, models)
        attempt = replace(attempt, holds=reached <= 1.0 and not excess.any())
        made.append(attempt)
        if shares:
            note(told(number, attempt))
        if attempt.holds and attempt.error <= TOLERANCE:
            break
        # A little more than what is over: sizes come in whole bytes, and rounding must not stop the search.
        over = over + 1.001 * excess
        if number and reached > 1.0:  # what was learnt of some shapes was not enough: the next ones will be as wrong
            tightened /= reached
        if measured is not None:
            models = _learnt(costs, latency, models, measured, network, quantised, attempt)
    if any(attempt.holds for attempt in made) or not all(_excess(attempt).any() for attempt in made):
        return tuple(made)
    if beside.implants is None:
        names = dict.fromkeys(WORDS[name] for name in made[-1].built)
        raise BudgetError(
            f"the budget on {' and '.join(names)} cannot be met",
            where="budget",
            why=f"up to {MOST_ROUNDS} plans were built, each with a tighter limit than the last; all were over it",
            hint="a looser budget",
        )
    # What implants add to the graph is too much for these limits: they are planned for without.
    fewer = replace(beside, implants=None)
    return joint_attempts(choices, costs, budget, fewer, by=by, seconds=seconds, margin=margin, part=part, note=note)


def _predicted(
    problem: Problem,
    solution: Solution,
    latency: JointLatency,
    models: Mapping[int, LatencyModel],
    measured: Measured | None,
) -> dict[int, float]:
    """Latency as a share of the dense network's, by batch size."""
    if measured is None:
        return {}
    amounts = problem.amounts(solution.position)[None]
    return {b: float(latency.column(m).cost(amounts)[0]) / measured.dense(b) for b, m in models.items()}


def _excess(attempt: Attempt) -> np.ndarray:
    """By how much size and memory as built are over each limit."""
    built = attempt.built
    return np.array([max(built.get(limit.budget, limit.bound) - limit.bound, 0.0) for limit in attempt.limits])


def _learnt(
    costs: Costs,
    latency: JointLatency,
    models: Mapping[int, LatencyModel],
    measured: Measured,
    network: Program,
    quantised: Network,
    attempt: Attempt,
) -> dict[int, LatencyModel]:
    """The models with the table refined at the shapes of a measured network, so that they predict its time."""
    amounts = attempt.problem.amounts(attempt.solution.position)[None]
    sites, full = layer_sites(network, quantised.integer), np.array([group.width for group in network.groups])
    found = {}
    for batch, model in models.items():
        learnt = model.learnt(sites, full, costs.timer.profile(quantised, batch))
        known = float(latency.column(learnt).cost(amounts)[0])
        found[batch] = learnt.shifted(attempt.shares[batch].median * measured.dense(batch) - known)
    return found


def _settled(program: Program, problem: Problem, solution: Solution, beside: Beside) -> Solution:
    """The solution with all units kept of groups that go with a block anyway: they cost nothing more."""
    position = solution.position.copy()
    for offer, dropped in zip(beside.blocks, position[len(problem.choices) :].copy(), strict=True):
        for i, choice in enumerate(problem.choices):
            if dropped and offer.block.holds(choice.group):
                position[i] = 0
    return replace(solution, position=position, rise=problem.rise(position))


def _rewritten(program: Program, problem: Problem, position: np.ndarray, beside: Beside) -> Program:
    """The network as planned."""
    keep, implants = _units(problem, position, beside)
    places = position[len(problem.choices) :]
    gone = [offer.block.name for offer, place in zip(beside.blocks, places, strict=True) if place]
    return rewrite(program, keep, implants, gone).program


def _built(network: Program, quantised: Network, limits: Sequence[Limit]) -> dict[str, float]:
    """Size and activation memory of the network as planned, where they are limited."""
    found: dict[str, float] = {}
    names = {limit.budget for limit in limits}
    if "size" in names:
        found["size"] = float(quantised.size)
    if "memory" in names:
        found["memory"] = peak(memory_columns(network), np.array([group.width for group in network.groups]))
    return found


def _units(problem: Problem, position: np.ndarray, beside: Beside) -> tuple[dict[str, tuple[int, ...]], Implants]:
    """Kept units of every group that loses some, and implants."""
    keep, implants = {}, {}
    for choice, place in zip(problem.choices, position, strict=False):
        first = choice.group.width - int(choice.widths[place])
        if first:
            keep[choice.group.name] = tuple(sorted(choice.order[first:].tolist()))
        if beside.implants is not None and choice.implanted is not None and choice.ranks is not None:
            units = tuple(choice.order[first : first + int(choice.implanted[place])].tolist())
            if units:
                implants[choice.group.name] = Implant(units, beside.implants.form, int(choice.ranks[place]) or None)
    return keep, implants
