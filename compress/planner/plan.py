"""`plan`: from sensitivities, cost and a budget to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np

from ...errors import UserError, did_you_mean
from ...export.targets import Target
from ...passes.program import Program
from ..budget import Budget
from ..cost.memory import FLOAT_BYTES, memory_columns, peak
from ..cost.model import CostModel
from ..cost.stopwatch import Stopwatch
from ..plan import GroupPlan, Plan, fingerprint
from ..sensitivity.table import Sensitivity
from .frontier import Frontier, frontier
from .limits import PLANNED, WORDS, Costs
from .milp import TIME_LIMIT
from .order import joint_rise
from .problem import Choice, make_choices, widths_by_name
from .rounds import Attempt, attempts, best
from .search import SEARCHES, chosen

MARGIN = 0.03
"""Share of a latency budget that is kept free by default: two measurements of one network differ by as much."""


def plan(
    program: Program,
    sensitivity: Sensitivity,
    *,
    target: Target,
    budget: Budget,
    floor: float = 0.1,
    by: str = "auto",
    ignore: Sequence[str] = (),
    stopwatch: Stopwatch | None = None,
    latency_margin: float = MARGIN,
    seconds: float = TIME_LIMIT,
    note: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Decides how many units every group keeps, so that all budgets hold at the least predicted rise of the loss.

    With a budget on latency the network as planned is built and measured; if that differs by more than a tenth from the
    prediction, or breaks the budget, the latency model is corrected by it and the plan is made again.

    Args:
        program: The program.
        sensitivity: What `rank` found on it.
        target: Kept widths are multiples of its INT8 alignment, unless a group is kept whole.
        budget: Limits on parameters, multiply-accumulates, latency, size of the file and activation memory, any of them
            together; accuracy is left to the gates.
        floor: Share of every group that always stays, 0 to 1.
        by: `gain` weighs predicted loss against cost; `sensitivity` is HAP's global threshold; `milp` is exact; `auto`
            is exact where something measured is limited, else `gain`.
        ignore: Patterns of names of groups that stay whole.
        stopwatch: Measures latency on the target; needed for a budget on it.
        latency_margin: Share of a latency budget that is kept free, 0 to 1.
        seconds: Time limit of each exact search.
        note: Told what was measured.

    Returns:
        A plan for every group, frozen ones too. The same arguments give the same plan, unless latency is measured.

    Raises:
        UserError: No budget to plan for, or an argument out of range.
        BudgetError: The budgets cannot be met; names the nearest that can.
    """
    options: dict[str, Any] = {
        "floor": floor,
        "by": by,
        "ignore": ignore,
        "stopwatch": stopwatch,
        "latency_margin": latency_margin,
        "seconds": seconds,
        "note": note,
    }
    return plan_with_frontier(0, program, sensitivity, target=target, budget=budget, **options)[0]


def plan_with_frontier(
    points: int,
    program: Program,
    sensitivity: Sensitivity,
    *,
    target: Target,
    budget: Budget,
    floor: float = 0.1,
    by: str = "auto",
    ignore: Sequence[str] = (),
    stopwatch: Stopwatch | None = None,
    latency_margin: float = MARGIN,
    seconds: float = TIME_LIMIT,
    part: float = 1.0,
    costs: Costs | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[Plan, Frontier | None]:
    """`plan`, and the Pareto frontier of predicted loss and the first budget around it.

    Args:
        points: How many budgets the frontier tries; 0 for no frontier.
        program: As in `plan`, like all that follows.
        sensitivity: See `plan`.
        target: See `plan`.
        budget: See `plan`.
        floor: See `plan`.
        by: See `plan`.
        ignore: See `plan`.
        stopwatch: See `plan`.
        latency_margin: See `plan`.
        seconds: See `plan`.
        part: Share of the way to the budget that this plan goes; see `stages`.
        costs: From an earlier plan of the program with the same width grid, so that they are measured once.
        note: See `plan`.
    """
    _check_arguments(by, floor, latency_margin)
    _check_budget(budget)
    costs = costs or Costs(program, target, stopwatch)
    choices = make_choices(program.groups, sensitivity, align=target.align_int8, floor=floor, ignore=tuple(ignore))
    search = chosen(by, frozenset(name for name in PLANNED if budget.amount(name) is not None))
    made = attempts(choices, costs, budget, by=search, seconds=seconds, margin=latency_margin, part=part, note=note)
    attempt = best(made)
    settings = {"by": by, "floor": floor, "ignore": list(ignore)}
    document = _document(attempt, made, costs, sensitivity, budget, settings)
    if not points:
        return document, None
    around = frontier(
        attempt.problem, attempt.limits, costs.model, unit=sensitivity.unit, points=points, seconds=seconds
    )
    return document, around


def _document(
    attempt: Attempt,
    made: Sequence[Attempt],
    costs: Costs,
    sensitivity: Sensitivity,
    budget: Budget,
    settings: dict[str, Any],
) -> Plan:
    """The plan that an attempt comes to."""
    problem, position, model = attempt.problem, attempt.solution.position, costs.model
    dense = model.dense
    groups = {
        choice.group.name: _decide(choice, int(place), model, sensitivity, choice.group.name in attempt.dropped)
        for choice, place in zip(problem.choices, position, strict=True)
    }
    seed = sensitivity.facts.get("seed")
    removed = {name: group.removed for name, group in groups.items()}
    delta_loss = joint_rise(sensitivity, removed)
    return Plan(
        target=costs.target.name,
        budget=budget.given(),
        method=sensitivity.method,
        unit=sensitivity.unit,
        seed=seed if isinstance(seed, int) else None,
        settings={**settings, "align": costs.target.align_int8},
        program=fingerprint(costs.program.groups),
        dense=dense,
        planned=model.cost(widths_by_name(problem, position)),
        delta_loss=_rounded(delta_loss),
        std_error=_rounded(sum(group.std_error**2 for group in groups.values()) ** 0.5),
        groups=groups,
        optimality=_optimality(attempt),
        measured=_measured(attempt, made, costs, budget),
    )


def _optimality(attempt: Attempt) -> dict[str, Any]:
    """How the plan was found, and how far from the best it can be."""
    solution = attempt.solution
    if solution.bound is None or solution.gap is None:
        return {"search": solution.solver}
    return {"search": solution.solver, "bound": _rounded(solution.bound), "gap": float(f"{solution.gap:.1e}")}


def _measured(attempt: Attempt, made: Sequence[Attempt], costs: Costs, budget: Budget) -> dict[str, dict[str, Any]]:
    """What the plan comes to in the costs that are not counted: as shares of the dense FP32 network."""
    found: dict[str, dict[str, Any]] = {}
    widths = attempt.problem.widths(attempt.solution.position)
    for batch, share in attempt.shares.items():
        found[f"latency at batch {batch}"] = {
            "predicted": _share(attempt.predicted[batch]),
            "measured": _share(share.median),
            "interval": [_share(share.low), _share(share.high)],
            "dense_us": round(float(share.baseline), 1),
            "rounds": len(made),
        }
    if budget.size is not None:
        size = float(costs.size.cost(widths[None])[0])
        found["size"] = {"predicted": _share(size / costs.dense_network.size), "bytes": round(size)}
    if budget.memory is not None:
        dense = peak(memory_columns(costs.program, bytes_per_element=FLOAT_BYTES), costs.full)
        most = peak(costs.memory, widths)
        found["memory"] = {"predicted": _share(most / dense), "bytes": round(most)}
    return found


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _check_arguments(by: str, floor: float, margin: float) -> None:
    if by == "structured-chita":
        raise UserError(
            "structured-chita is no search over the scores of a ranking",
            where="plan.by",
            why="it chooses units jointly, from data and a loss",
            hint="call secateur.compress.chita.structured.structured_chita, or set plan.by in a recipe",
        )
    if by not in SEARCHES:
        raise UserError(
            f"unknown order {by!r}{did_you_mean(by, SEARCHES)}",
            where="plan.by",
            hint=f"there is: {', '.join(SEARCHES)}",
        )
    if not (isfinite(floor) and 0.0 <= floor <= 1.0):
        raise UserError(
            f"the floor is a share from 0 to 1, not {floor}",
            where="plan.floor",
            hint="0.1 keeps a tenth of every group",
        )
    if not 0.0 <= margin < 1.0:
        raise UserError(
            f"the latency margin is a share from 0 to 1, not {margin}",
            where="plan.latency_margin",
            hint="0.03 keeps 3 % of the latency budget free",
        )


def _check_budget(budget: Budget) -> None:
    if any(budget.amount(name) is not None for name in PLANNED):
        return
    given = ", ".join(budget.given())
    raise UserError(
        f"a budget on {given} alone cannot be planned for" if given else "there is no budget",
        where="budget",
        why=f"the planner knows {', '.join(WORDS.values())}; accuracy is measured on the artifact",
        hint="add --max-macs 50%, --max-latency 50% or --max-params 300k",
    )


def _decide(choice: Choice, position: int, model: CostModel, sensitivity: Sensitivity, noise: bool) -> GroupPlan:
    """The line of one group; `noise` says that a cut of it was given up."""
    group, width, dense = choice.group, int(choice.widths[position]), model.dense
    if choice.scores is None:
        return GroupPlan(group.width, reason=choice.reason)
    if position == 0:
        reason = "no cut of it gains more latency than noise" if noise else "any cut costs more than cuts elsewhere"
        return GroupPlan(group.width, reason=reason)
    removed = choice.order[: group.width - width]
    alone = model.cost({group.name: width})
    further = float(choice.rise[position + 1] - choice.rise[position]) if position + 1 < len(choice.widths) else None
    return GroupPlan(
        width=group.width,
        removed=tuple(int(unit) for unit in removed),
        delta_loss=_rounded(joint_rise(sensitivity, {group.name: tuple(removed.tolist())})),
        std_error=_rounded(float(np.sqrt((choice.scores.std_error[removed] ** 2).sum()))),
        params=alone.params - dense.params,
        macs=alone.macs - dense.macs,
        reason="cut to its floor" if further is None else f"a further cut would cost {_rounded(further):g}",
    )


def _rounded(value: float) -> float:
    """Three significant digits: more would pretend, and people read them."""
    return float(f"{value:.2e}")
