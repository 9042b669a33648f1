"""Planning in rounds where latency is limited: choose, measure the whole network, correct the model, choose again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ...errors import BudgetError
from ...passes.prune import apply
from ..budget import Budget
from ..cost.latency import LatencyModel
from ..cost.stopwatch import Share
from ..cost.whole import integer_network
from .limits import Costs, Limit
from .problem import Choice, Problem
from .refusal import refusal
from .search import COUNTED, RULES_OF_THUMB, SEARCHES
from .solution import Solution

TOLERANCE = 0.10
"""Error of the predicted latency, as a share of the measured one, above which the table is refined."""

MOST_ROUNDS = 4
SIGNIFICANT = 2.0
"""A gain in latency counts if it is at least so many standard errors."""


@dataclass(frozen=True)
class Attempt:
    """One round.

    Attributes:
        problem: What was solved.
        limits: Its limits.
        solution: The choice.
        predicted: Latency as a share of the dense FP32 network's, by batch size; empty without a latency budget.
        shares: The same, measured.
        holds: The latencies measured are within the budget.
        dropped: Groups of which a cut was not made because its gain is within noise.
        built: Costs of the network as planned, where it was built to know them.
    """

    problem: Problem
    limits: tuple[Limit, ...]
    solution: Solution
    predicted: Mapping[int, float]
    shares: Mapping[int, Share]
    holds: bool = True
    dropped: tuple[str, ...] = ()
    built: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Largest error of the prediction, as a share of what was measured."""
        return max((abs(self.predicted[b] / share.median - 1) for b, share in self.shares.items()), default=0.0)


def attempts(
    choices: tuple[Choice, ...],
    costs: Costs,
    budget: Budget,
    *,
    by: str,
    seconds: float,
    margin: float,
    part: float,
    note: Callable[[str], None],
) -> tuple[Attempt, ...]:
    """Plans, and where latency is limited measures and plans again; the last attempt but for those worse is the plan.

    Args:
        choices: Allowed widths.
        costs: Costs of the program.
        budget: The budget.
        by: Name of the search.
        seconds: Time limit of each search.
        margin: Share of a latency budget that is kept free.
        part: Share of the way from the whole network's costs to the limits; only at 1 is the plan measured.
        note: Told what was measured.

    Raises:
        BudgetError: The budgets cannot be met.
    """
    if budget.latency is None or part < 1.0:
        known = costs.measure([choice.widths for choice in choices]) if budget.latency is not None else None
        limits = costs.limits(budget, known.models if known else {}, known, margin)
        problem = part_of_the_way(_problem(choices, limits), part)
        return (Attempt(problem, limits, solve_within(problem, limits, by, seconds), {}, {}),)
    measured = costs.measure([choice.widths for choice in choices])
    models, made = dict(measured.models), []
    tightened = 1.0
    for number in range(MOST_ROUNDS):
        limits = costs.limits(budget, models, measured, 1 - tightened * (1 - margin))
        problem = _problem(choices, limits)
        solution = solve_within(problem, limits, by, seconds)
        problem, solution, dropped = without_noise(problem, limits, solution, models, by=by, seconds=seconds)
        widths = problem.widths(solution.position)
        predicted = {batch: model.micros(widths) / measured.dense(batch) for batch, model in models.items()}
        if made and np.array_equal(widths, made[-1].problem.widths(made[-1].solution.position)):
            made.append(replace(made[-1], problem=problem, limits=limits, solution=solution, predicted=predicted))
            break  # it is measured already, and the model has learnt from it
        network = integer_network(apply(costs.program, _keep(problem, solution), allow_unchanged=True), costs.target)
        shares = costs.timer.shares(costs.dense_network, network)
        reached = latency_reached(limits, shares, models)
        attempt = Attempt(problem, limits, solution, predicted, shares, reached <= 1.0, dropped)
        made.append(attempt)
        note(told(number, attempt))
        if attempt.error <= TOLERANCE and attempt.holds:
            break
        if number and reached > 1.0:  # what was learnt of some shapes was not enough: the next ones will be as wrong
            tightened /= reached
        for batch, model in models.items():
            profile = costs.timer.profile(network, batch)
            models[batch] = model.corrected(widths, profile, shares[batch].median * measured.dense(batch))
    return tuple(made)


def best(made: tuple[Attempt, ...]) -> Attempt:
    """The latest attempt of the least predicted loss among those that were measured to hold; the last if none was."""
    good = [attempt for attempt in made if attempt.holds]
    return min(reversed(good), key=lambda attempt: attempt.solution.rise) if good else made[-1]


def latency_reached(limits: Sequence[Limit], shares: Mapping[int, Share], models: Mapping[int, LatencyModel]) -> float:
    """The latencies measured as a share of the budget itself, without its margin: the largest."""
    by_name = {model.name: batch for batch, model in models.items()}
    found = [0.0]
    for limit in limits:
        if limit.budget == "latency":
            share = shares[by_name[limit.column.name]]
            found.append((share.median if limit.amount.relative else share.micros * 1e-6) / limit.amount.value)
    return max(found)


def without_noise(
    problem: Problem,
    limits: tuple[Limit, ...],
    solution: Solution,
    models: Mapping[int, LatencyModel],
    *,
    by: str,
    seconds: float,
) -> tuple[Problem, Solution, tuple[str, ...]]:
    """Takes back cuts whose gain in latency cannot be told from noise.

    A cut that other budgets need stays. One that can be taken back, wholly or in part, within all budgets is. Where
    taking it back wholly breaks the latency budget by what is within noise, all widths whose gain is within noise are
    struck out and the search runs again; if nothing is within the limits then, the cut stays.

    Returns:
        The problem with the struck widths left out, its solution, and the groups concerned.
    """
    dropped: list[str] = []
    kept: set[str] = set()
    latency = np.array([limit.budget == "latency" for limit in limits])
    while True:
        found = _insignificant(problem, solution, models, ~latency, kept)
        if found is None:
            return problem, solution, tuple(dict.fromkeys(dropped))
        group, wider = found
        name = problem.choices[group].group.name
        position = solution.position.copy()
        position[group] = wider
        if problem.fits(position[None])[0]:
            rise = problem.rise(position)
            solution = replace(solution, position=position, rise=rise, bound=solution.bound)
            dropped.append(name)
            continue
        struck = _problem(_strike(problem.choices, group, _lost_in_noise(problem, solution, models, group)), limits)
        again = SEARCHES[by](struck, seconds)
        if again is None:
            kept.add(name)
            continue
        problem, solution = struck, again
        dropped.append(name)


def _insignificant(
    problem: Problem,
    solution: Solution,
    models: Mapping[int, LatencyModel],
    other: np.ndarray,
    kept: set[str],
) -> tuple[int, int] | None:
    """A group and a wider position of it from which the cut gains nothing that can be told; None if there is none."""
    for group, choice in enumerate(problem.choices):
        if choice.group.name in kept:
            continue
        positions = np.repeat(solution.position[None], int(solution.position[group]), axis=0)
        positions[:, group] = np.arange(len(positions))
        costs = problem.costs(positions)
        able = ~(costs > problem.limits)[:, other].any(axis=1) & (problem.fits(positions) | (positions[:, group] == 0))
        for wider in np.flatnonzero(able).tolist():
            if not _gains(problem, positions[wider], solution.position, models):
                return group, wider
    return None


def _gains(problem: Problem, before: np.ndarray, after: np.ndarray, models: Mapping[int, LatencyModel]) -> bool:
    """Whether a network of one position is faster than that of another by more than noise, at any batch size."""
    wider, narrower = problem.widths(before), problem.widths(after)
    return any(m.micros(wider) - m.micros(narrower) > SIGNIFICANT * m.noise(wider, narrower) for m in models.values())


def _lost_in_noise(problem: Problem, solution: Solution, models: Mapping[int, LatencyModel], group: int) -> list[int]:
    """Positions of a group without a gain that can be told, up to the first with one behind that of the solution."""
    whole, cut = solution.position.copy(), solution.position.copy()
    whole[group], own, found = 0, int(cut[group]), []
    for place in range(1, len(problem.choices[group].widths)):
        cut[group] = place
        if not _gains(problem, whole, cut, models):
            found.append(place)
        elif place > own:
            break
    return found


def _strike(choices: tuple[Choice, ...], group: int, positions: Sequence[int]) -> tuple[Choice, ...]:
    """The choices without some widths of one group."""
    choice = choices[group]
    fewer = replace(choice, widths=np.delete(choice.widths, positions), rise=np.delete(choice.rise, positions))
    return (*choices[:group], fewer, *choices[group + 1 :])


def _problem(choices: tuple[Choice, ...], limits: tuple[Limit, ...]) -> Problem:
    return Problem(choices, tuple(limit.column for limit in limits), np.array([limit.bound for limit in limits]))


def part_of_the_way(problem: Problem, part: float) -> Problem:
    """The problem with limits that are only a part of the way from the costs at full width."""
    whole = problem.costs(problem.first[None])[0]
    return replace(
        problem, limits=np.where(whole > problem.limits, whole + part * (problem.limits - whole), problem.limits)
    )


def solve_within(problem: Problem, limits: tuple[Limit, ...], by: str, seconds: float) -> Solution:
    """What the search of this name finds.

    Raises:
        BudgetError: Nothing is within the limits, or the search finds nothing.
    """
    # A search by rule of thumb takes a feasible problem, and counts fall with every cut.
    hopeless = (
        by in RULES_OF_THUMB
        and all(limit.budget in COUNTED for limit in limits)
        and not problem.fits(problem.last[None])[0]
    )
    found = None if hopeless else SEARCHES[by](problem, seconds)
    if found is not None:
        return found
    refused = refusal(problem, limits, seconds)
    if refused is not None:
        raise refused
    raise BudgetError(
        f"the search by {by} found no plan within the budgets, though there is one",
        where="plan.by",
        why="its rule of thumb takes every cut for a gain, and some layers are slower when they are narrower"
        if any(limit.budget == "latency" for limit in limits)
        else f"{seconds:g} seconds were not enough"
        if by in ("milp", "auto")
        else "it is a rule of thumb",
        hint="plan.by: auto searches exactly",
    )


def _keep(problem: Problem, solution: Solution) -> dict[str, tuple[int, ...]]:
    """Kept units of the groups that lose some."""
    widths = problem.widths(solution.position)
    return {
        choice.group.name: tuple(sorted(choice.order[choice.group.width - int(width) :].tolist()))
        for choice, width in zip(problem.choices, widths, strict=True)
        if width < choice.group.width
    }


def told(number: int, attempt: Attempt) -> str:
    """What a round predicted and measured, in words."""
    said = [
        f"batch {batch} {100 * attempt.predicted[batch]:.1f} % predicted, {100 * share.median:.1f} % measured"
        for batch, share in attempt.shares.items()
    ]
    doubts = sorted({text for share in attempt.shares.values() for text in share.warnings})
    return "; ".join([f"plan {number + 1}: of the latency of the dense network, {'; '.join(said)}", *doubts])
