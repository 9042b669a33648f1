"""`plan`: from sensitivities, cost and a budget to a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from ...errors import BudgetError, UserError, did_you_mean
from ...export.targets import Target
from ...passes.blocks import residual_blocks
from ...passes.program import Program
from ..budget import Budget
from ..cost.stopwatch import Stopwatch
from ..implants.offers import Offers
from ..plan import Plan
from ..sensitivity.table import Sensitivity
from .beside import Beside
from .document import document
from .drops import BlockOffer
from .frontier import Frontier, frontier
from .joint import joint_attempts
from .limits import PLANNED, WORDS, Costs
from .milp import TIME_LIMIT
from .problem import make_choices
from .rounds import attempts, best
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
    implants: Offers | None = None,
    blocks: Sequence[BlockOffer] = (),
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
        implants: Implants to choose from jointly with the widths (`measure_losses`); None plans without.
        blocks: Residual blocks that may be dropped (`measure_blocks`).
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
        "implants": implants,
        "blocks": blocks,
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
    implants: Offers | None = None,
    blocks: Sequence[BlockOffer] = (),
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
        implants: See `plan`.
        blocks: See `plan`.
        note: See `plan`.
    """
    _check_arguments(by, floor, latency_margin)
    check_budget(budget)
    costs = costs or Costs(program, target, stopwatch)
    choices = make_choices(program.groups, sensitivity, align=target.align_int8, floor=floor, ignore=tuple(ignore))
    beside = Beside(implants, tuple(blocks)) if implants is not None or blocks else None
    if beside is not None:
        beside.check(by, sensitivity)
    search = chosen(by, frozenset(name for name in PLANNED if budget.amount(name) is not None), beside is not None)
    how: dict[str, Any] = {"by": search, "seconds": seconds, "part": part, "margin": latency_margin, "note": note}
    try:
        if beside is not None:
            made = joint_attempts(choices, costs, budget, beside, **how)
        else:
            made = attempts(choices, costs, budget, **how)
    except BudgetError as error:
        raise error if blocks else _naming_blocks(error, program) from None
    attempt = best(made)
    settings: dict[str, Any] = {"by": by, "floor": floor, "ignore": list(ignore)}
    if implants is not None:
        settings |= {"implant": implants.form, "ni_ratio": "auto", "implant_samples": implants.facts.get("samples", 0)}
    if blocks:
        settings |= {"blocks": "drop"}
    written = document(attempt, made, costs, sensitivity, budget, settings, beside or Beside())
    if not points:
        return written, None
    around = frontier(
        attempt.problem, attempt.limits, costs.model, unit=sensitivity.unit, points=points, seconds=seconds
    )
    return written, around


def _naming_blocks(error: BudgetError, program: Program) -> BudgetError:
    """The refusal; where whole blocks could have gone, it says so."""
    count = len(residual_blocks(program))
    if not count:
        return error
    words = "the residual block go as well" if count == 1 else f"any of {count} residual blocks go as well"
    hint = f"{error.hint}; or plan.blocks: drop, which lets {words}"
    return BudgetError(error.what, where=error.where, why=error.why, hint=hint, code=error.code)


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


def check_budget(budget: Budget) -> None:
    """Whether there is anything to plan for; needs no program, so that a recipe is refused before anything runs.

    Raises:
        UserError: There is no budget, or only one on accuracy.
    """
    if any(budget.amount(name) is not None for name in PLANNED):
        return
    given = ", ".join(budget.given())
    raise UserError(
        f"a budget on {given} alone cannot be planned for" if given else "there is no budget",
        where="budget",
        why=f"the planner knows {', '.join(WORDS.values())}; accuracy is measured on the artifact",
        hint="add --max-macs 50%, --max-latency 50% or --max-params 300k",
    )
