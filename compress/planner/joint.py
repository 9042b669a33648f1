"""Planning with implants and blocks beside widths: what cannot be counted is read off the network as planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ...errors import BudgetError
from ...passes.implant_form import Implant, Implants
from ...passes.program import Program
from ..budget import Budget
from ..cost.memory import memory_columns, peak
from ..cost.whole import integer_network
from ..implants.apply import rewrite
from .beside import Beside
from .limits import WORDS, Costs
from .problem import Choice, Problem
from .rounds import Attempt, part_of_the_way, solve_within
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
    part: float = 1.0,
) -> tuple[Attempt, ...]:
    """Plans; where size or memory is limited, the network as planned is built, and planned again if it is over.

    Counts are exact. Sizes and memory leave out what implants add to the graph (see `Beside.extended`), so their limits
    are lowered by what the built network has too much.

    Args:
        choices: Allowed widths.
        costs: Costs of the program.
        budget: The budget; not on latency.
        beside: Implants and blocks to choose from.
        by: Name of the search, an exact one.
        seconds: Time limit of each search.
        part: Share of the way from the whole network's costs to the limits.

    Raises:
        BudgetError: The budgets cannot be met.
    """
    program = costs.program
    limits = beside.extended(costs, costs.limits(budget, {}, None, 0.0))
    wanted = np.array([limit.bound for limit in limits])
    levels = beside.choices(program, choices, costs.target.align_int8)
    problem = Problem(levels, tuple(limit.column for limit in limits), wanted, beside.drops(program))
    problem = part_of_the_way(problem, part)
    names = [limit.budget for limit in limits if limit.budget in ("size", "memory")]
    for number in range(MOST_ROUNDS):
        within = tuple(replace(limit, bound=float(b)) for limit, b in zip(limits, problem.limits, strict=True))
        try:
            solution = _settled(program, problem, solve_within(problem, within, by, seconds), beside)
        except BudgetError:
            if not number:
                raise
            break
        if not names or part < 1.0:
            return (Attempt(problem, limits, solution, {}, {}),)
        built = _built(costs, problem, solution, beside, names)
        over = [max(built[limit.budget] - limit.bound, 0.0) if limit.budget in built else 0.0 for limit in limits]
        if not any(over):
            return (Attempt(problem, limits, solution, {}, {}, built=built),)
        # A little more than what is over: sizes come in whole bytes, and rounding must not stop the search.
        problem = replace(problem, limits=problem.limits - 1.001 * np.array(over))
    if beside.implants is None:
        raise BudgetError(
            f"the budget on {' and '.join(WORDS[name] for name in dict.fromkeys(names))} cannot be met",
            where="budget",
            why=f"up to {MOST_ROUNDS} plans were built, each with a tighter limit than the last; all were over it",
            hint="a looser budget",
        )
    # What implants add to the graph is too much for these limits: they are planned for without.
    return joint_attempts(choices, costs, budget, replace(beside, implants=None), by=by, seconds=seconds, part=part)


def _settled(program: Program, problem: Problem, solution: Solution, beside: Beside) -> Solution:
    """The solution with all units kept of groups that go with a block anyway: they cost nothing more."""
    position = solution.position.copy()
    for offer, dropped in zip(beside.blocks, position[len(problem.choices) :].copy(), strict=True):
        for i, choice in enumerate(problem.choices):
            if dropped and offer.block.holds(choice.group):
                position[i] = 0
    return replace(solution, position=position, rise=problem.rise(position))


def _built(costs: Costs, problem: Problem, solution: Solution, beside: Beside, names: list[str]) -> Mapping[str, float]:
    """Size and activation memory of the network as planned."""
    keep, implants = _units(problem, solution.position, beside)
    gone = [
        offer.block.name
        for offer, at in zip(beside.blocks, solution.position[len(problem.choices) :], strict=True)
        if at
    ]
    network = rewrite(costs.program, keep, implants, gone).program
    found: dict[str, float] = {}
    if "size" in names:
        found["size"] = float(integer_network(network, costs.target).size)
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
