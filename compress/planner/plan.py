"""`plan`: from sensitivities, cost and a budget to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite

import numpy as np

from ...errors import BudgetError, UserError, did_you_mean
from ...export.targets import Target
from ...passes.program import Program
from ..budget import Amount, Budget
from ..cost.model import Cost, CostModel
from ..plan import GroupPlan, Plan, fingerprint
from ..sensitivity.table import Sensitivity
from .greedy import greedy, threshold
from .problem import Choice, Problem, make_choices, widths_by_name

PLANNERS: Mapping[str, Callable[[Problem], np.ndarray]] = {"gain": greedy, "sensitivity": threshold}
"""Search strategies by name: from a feasible problem to the position of each group in its allowed widths."""

_WORDS = {"params": "parameters", "macs": "multiply-accumulates"}
"""The budgets that can be planned for, in the order of `CostModel.costs`."""


def plan(
    program: Program,
    sensitivity: Sensitivity,
    *,
    target: Target,
    budget: Budget,
    floor: float = 0.1,
    by: str = "gain",
    ignore: Sequence[str] = (),
) -> Plan:
    """Decides how many units every group keeps, so that the budgets hold at the least predicted rise of the loss.

    Args:
        program: The program.
        sensitivity: What `rank` found on it.
        target: Kept widths are multiples of its INT8 alignment, unless a group is kept whole.
        budget: Limits on parameters or multiply-accumulates, or both; latency, size and accuracy are left to the gates.
        floor: Share of every group that always stays, 0 to 1.
        by: `gain` weighs predicted loss against cost; `sensitivity` is HAP's global threshold.
        ignore: Patterns of names of groups that stay whole.

    Returns:
        A plan for every group, frozen ones too. The same arguments give the same plan.

    Raises:
        UserError: No budget to plan for, or an argument out of range.
        BudgetError: The budget cannot be met; names the nearest that can.
    """
    if by not in PLANNERS:
        raise UserError(
            f"unknown order {by!r}{did_you_mean(by, PLANNERS)}",
            where="plan.by",
            hint=f"there is: {', '.join(PLANNERS)}",
        )
    if not (isfinite(floor) and 0.0 <= floor <= 1.0):
        raise UserError(
            f"the floor is a share from 0 to 1, not {floor}",
            where="plan.floor",
            hint="0.1 keeps a tenth of every group",
        )
    amounts = _amounts(budget)
    model = CostModel.of(program)
    dense = model.dense
    limits = np.array([_limit(amounts.get(name), getattr(dense, name)) for name in _WORDS], dtype=np.int64)
    choices = make_choices(program.groups, sensitivity, align=target.align_int8, floor=floor, ignore=tuple(ignore))
    problem = Problem(choices, model, limits)
    _check_feasible(amounts, dense, model.cost(widths_by_name(problem, problem.last)), choices)
    position = PLANNERS[by](problem)
    groups = {c.group.name: _decide(c, int(p), model, dense) for c, p in zip(choices, position, strict=True)}
    seed = sensitivity.facts.get("seed")
    return Plan(
        target=target.name,
        budget=budget.given(),
        method=sensitivity.method,
        unit=sensitivity.unit,
        seed=seed if isinstance(seed, int) else None,
        settings={"by": by, "floor": floor, "align": target.align_int8, "ignore": list(ignore)},
        program=fingerprint(program.groups),
        dense=dense,
        planned=model.cost(widths_by_name(problem, position)),
        delta_loss=_rounded(sum(group.delta_loss for group in groups.values())),
        std_error=_rounded(sum(group.std_error**2 for group in groups.values()) ** 0.5),
        groups=groups,
    )


def _amounts(budget: Budget) -> dict[str, Amount]:
    """The budgets to plan for."""
    amounts = {name: amount for name in _WORDS if (amount := budget.amount(name)) is not None}
    if amounts:
        return amounts
    given = ", ".join(budget.given())
    raise UserError(
        f"a budget on {given} alone cannot be planned for" if given else "there is no budget",
        where="budget",
        why="the planner counts parameters and multiply-accumulates; the rest is measured on the artifact",
        hint="add --max-macs 50% or --max-params 300k",
    )


def _limit(amount: Amount | None, dense: int) -> int:
    return dense if amount is None else int(amount.of(dense) + 1e-6)


def _check_feasible(amounts: Mapping[str, Amount], dense: Cost, smallest: Cost, choices: Sequence[Choice]) -> None:
    """Refuses budgets that do not hold even with every group at its floor."""
    names, asked, reached, nearest = [], [], [], []
    for name, amount in amounts.items():
        whole, least = getattr(dense, name), getattr(smallest, name)
        if least > _limit(amount, whole):
            names.append(_WORDS[name])
            asked.append(f"{name}: {100 * amount.value:g}%" if amount.relative else f"{name}: {amount.value:,.0f}")
            reached.append(f"{least:,} of {whole:,} {_WORDS[name]} remain ({100 * least / whole:.2f}%)")
            nearest.append(f"--max-{name} {_nearest(amount, least, whole)}")
    if names and all(choice.scores is None for choice in choices):
        whole = "; ".join(f"{choice.group.name} is {choice.reason}" for choice in choices[:8])
        raise BudgetError(
            f"the budget on {' and '.join(names)} cannot be met: nothing in this network can be removed",
            where=f"budget {', '.join(asked)}",
            why=whole or "it has no layers whose channels could go",
            hint="secateur inspect shows every group and why it stays whole; a budget of 100% only quantises",
        )
    if names:
        raise BudgetError(
            f"the budget on {' and '.join(names)} cannot be met",
            where=f"budget {', '.join(asked)}",
            why=f"with every group at its floor, {' and '.join(reached)}",
            hint=f"the nearest that can: {' '.join(nearest)}; or a lower floor, or fewer ignored groups",
        )


def _nearest(amount: Amount, least: int, dense: int) -> str:
    """The smallest feasible budget, in the unit that was used, rounded up so that it is feasible as typed."""
    if amount.relative:
        return f"{ceil(least / dense * 10000 - 1e-9) / 100:g}%"
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if least >= size:
            return f"{ceil(least * 1000 / size) / 1000:g}{unit}"
    return f"{least / 1000:g}k"


def _decide(choice: Choice, position: int, model: CostModel, dense: Cost) -> GroupPlan:
    """The line of one group."""
    group, width = choice.group, int(choice.widths[position])
    if choice.scores is None:
        return GroupPlan(group.width, reason=choice.reason)
    if position == 0:
        return GroupPlan(group.width, reason="any cut costs more than cuts elsewhere")
    removed = choice.order[: group.width - width]
    alone = model.cost({group.name: width})
    further = float(choice.rise[position + 1] - choice.rise[position]) if position + 1 < len(choice.widths) else None
    return GroupPlan(
        width=group.width,
        removed=tuple(int(unit) for unit in removed),
        delta_loss=_rounded(float(choice.scores.delta_loss[removed].sum())),
        std_error=_rounded(float(np.sqrt((choice.scores.std_error[removed] ** 2).sum()))),
        params=alone.params - dense.params,
        macs=alone.macs - dense.macs,
        reason="cut to its floor" if further is None else f"a further cut would cost {_rounded(further):g}",
    )


def _rounded(value: float) -> float:
    """Three significant digits: more would pretend, and people read them."""
    return float(f"{value:.2e}")
