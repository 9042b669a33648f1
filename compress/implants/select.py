"""Which of the units to be pruned get an implant: HAP's rule, the most sensitive share of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import gcd

import numpy as np

from ...errors import Allowed, UserError
from ...passes.implant import implantable
from ...passes.implant_form import RANKED, Implant, default_rank, weights_of
from ...passes.labels.groups import Group
from ...passes.program import Program
from ..budget import Budget
from ..cost.model import Cost, CostModel
from ..plan import GroupPlan, Plan
from ..planner.order import joint_rise
from ..sensitivity.table import Sensitivity
from .cost import filters_of, implants_save

_STEPS = 6
"""Bisections of the tighter budget: to within half a per cent of what could be used."""


def with_implants(
    program: Program,
    plan: Plan,
    sensitivity: Sensitivity,
    *,
    ni_ratio: float = 0.1,
    form: str = "pointwise",
    rank: int | None = None,
    init: str = "least-squares",
    align: int | None = None,
) -> Plan:
    """A plan in which the most sensitive of the removed units get an implant instead.

    Of all units that the plan removes, the share `ni_ratio` with the highest scores is implanted (HAP: Yu et al. 2022,
    arXiv:2101.08940), as far as their groups allow it; group by group the number is rounded to the width grid.

    Args:
        program: The program that was ranked.
        plan: Says which units are removed.
        sensitivity: The ranking.
        ni_ratio: Share of the removed units, 0 to 1.
        form: Form of the implants.
        rank: Rank of a ranked form; None takes the largest that costs no more than a pointwise implant (half of the
            filters, where their kernel has size 1).
        init: Where their weights come from.
        align: Implanted units of a group are a multiple of this; None takes the grid that the plan was made for.

    Returns:
        A new plan; `delta_loss` is that of the units that are still removed: what implants lose is not predicted.
        Costs are exact, and higher than those of the plan.

    Raises:
        UserError: A share out of range.
    """
    if not 0.0 <= ni_ratio <= 1.0:
        raise UserError(f"ni_ratio is a share from 0 to 1, not {ni_ratio}", where="plan.ni_ratio", hint="HAP takes 0.1")
    grid = int(plan.settings.get("align", 1)) if align is None else align
    groups = {group.name: group for group in program.groups}
    removed = [(name, unit) for name, line in plan.groups.items() for unit in line.removed]
    scores = np.array([sensitivity.groups[name].delta_loss[unit] for name, unit in removed])
    allowed = {n for n, line in plan.groups.items() if line.removed and _allows(program, groups[n], form)}
    order = [i for i in np.argsort(-scores, kind="stable") if removed[i][0] in allowed]
    chosen = [removed[i][0] for i in order[: round(ni_ratio * len(removed))]]
    lines = dict(plan.groups)
    for name, line in plan.groups.items():
        count = _on_grid(chosen.count(name), len(line.removed), groups[name], grid)
        by_score = sorted(line.removed, key=lambda unit: sensitivity.groups[name].delta_loss[unit])
        units = tuple(by_score[len(by_score) - count :])
        if units:
            gone = set(units)
            rest = tuple(unit for unit in line.removed if unit not in gone)
            lines[name] = replace(line, removed=rest, implant=Implant(units, form, rank))
    while (settled := _settled(program, lines, plan.groups)) != lines:
        lines = settled
    # What was proven and measured is about the network without implants.
    settings = {**plan.settings, "implant": form, "ni_ratio": ni_ratio}
    made = replace(plan, groups=lines, implant_init=init, settings=settings, optimality={}, measured={})
    return _priced(program, made, sensitivity, plan)


def plan_within(
    make: Callable[[Budget], Plan], program: Program, sensitivity: Sensitivity, budget: Budget, **implants: object
) -> Plan:
    """A plan whose implants are paid for: what is pruned more makes room for them.

    Args:
        make: Plans without implants for a budget.
        program: The program.
        sensitivity: The ranking.
        budget: Holds for the plan with its implants, as far as parameters and multiply-accumulates go; other limits
            are met without the implants, and checked on the artifact.
        implants: Arguments of `with_implants`.

    Returns:
        The plan with the loosest budget without implants that still meets `budget` with them.

    Raises:
        BudgetError: `make` cannot meet a tighter budget.
    """
    model = CostModel.of(program)
    limits = {name: a.of(getattr(model.dense, name)) for name in _PLANNED if (a := budget.amount(name)) is not None}

    def attempt(share: float) -> tuple[Plan, bool]:
        tighter = {name: f"{limit * share / 1e3}k" for name, limit in limits.items()}
        cut = make(Budget(**{**budget.given(), **tighter}))
        made = with_implants(program, cut, sensitivity, **implants)  # type: ignore[arg-type]
        return made, all(getattr(made.planned, name) <= limit for name, limit in limits.items())

    if not limits:
        return with_implants(program, make(budget), sensitivity, **implants)  # type: ignore[arg-type]
    high, low = 1.0, 0.97
    best, fits = attempt(low)
    while not fits:
        high, low = low, low * 0.96
        best, fits = attempt(low)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        made, fits = attempt(middle)
        best, low, high = (made, middle, high) if fits else (best, low, middle)
    return replace(best, budget=budget.given())


_PLANNED = ("params", "macs")


def _allows(program: Program, group: Group, form: str) -> bool:
    return isinstance(implantable(program, group, form), Allowed)


def _on_grid(count: int, removed: int, group: Group, align: int) -> int:
    """The nearest multiple of the grid that is not more than what is removed."""
    multiplicity = gcd(*(member.index.shape[1] for member in group.producers)) or 1
    step = align // gcd(align, multiplicity)
    return min((2 * count + step) // (2 * step), removed // step) * step


def _settled(program: Program, lines: Mapping[str, GroupPlan], before: Mapping[str, GroupPlan]) -> dict[str, GroupPlan]:
    """The lines with ranks filled in, without implants that cost as much as the filters that they replace."""
    widths = {name: line.width - len(line.removed) for name, line in lines.items()}
    return {name: _cheaper(program, widths, name, line, before[name]) for name, line in lines.items()}


def _cheaper(program: Program, widths: Mapping[str, int], name: str, line: GroupPlan, before: GroupPlan) -> GroupPlan:
    """The line with its rank filled in; that of before where no rank makes the implant cheaper than the filters."""
    if line.implant is None or line.implant.form == "center":
        return line
    form, rank = line.implant.form, line.implant.rank
    shapes = filters_of(program, widths, name, line.implant)
    if form in RANKED and rank is None:
        rank = min((r for shape in shapes if (r := default_rank(shape, form)) is not None), default=1)
    if any(weights_of(shape, form, rank) >= int(np.prod(shape)) for shape in shapes):
        return before
    return replace(line, implant=replace(line.implant, rank=rank))


def _priced(program: Program, plan: Plan, sensitivity: Sensitivity, before: Plan) -> Plan:
    """The plan with exact costs, and the predicted loss of what is still removed."""
    model = CostModel.of(program)
    dense = model.dense
    lines = {}
    for name, line in plan.groups.items():
        if line.implant is None:
            lines[name] = line
            continue
        width, gone, scores = line.width - len(line.removed), list(line.removed), sensitivity.groups[name]
        alone = _less(model.cost({name: width}), implants_save(program, {name: width}, {name: line.implant}))
        lines[name] = replace(
            line,
            delta_loss=_rounded(joint_rise(sensitivity, {name: line.removed})),
            std_error=_rounded(float(np.sqrt((scores.std_error[gone] ** 2).sum()))),
            params=alone.params - dense.params,
            macs=alone.macs - dense.macs,
            reason=f"{len(line.implanted)} of the {len(before.groups[name].removed)} least sensitive get an implant",
        )
    widths = {name: line.width - len(line.removed) for name, line in lines.items()}
    plan = replace(plan, groups=lines)
    return replace(
        plan,
        planned=_less(model.cost(widths), implants_save(program, widths, plan.implants())),
        delta_loss=_rounded(joint_rise(sensitivity, {name: line.removed for name, line in lines.items()})),
        std_error=_rounded(sum(line.std_error**2 for line in lines.values()) ** 0.5),
    )


def _less(cost: Cost, saved: Cost) -> Cost:
    return replace(cost, params=cost.params - saved.params, macs=cost.macs - saved.macs)


def _rounded(value: float) -> float:
    """Three significant digits, as in the plan without implants."""
    return float(f"{value:.2e}")
