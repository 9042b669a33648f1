"""What structured-chita may remove within a budget, and the plan that says what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from ...errors import UserError
from ...export.targets import Target
from ...passes.labels.groups import Group
from ...passes.program import Program
from ..budget import Budget
from ..cost.model import CostModel
from ..cost.stopwatch import Stopwatch
from ..plan import GroupPlan, Plan, fingerprint
from ..planner.limits import Costs, Limit
from ..planner.milp import TIME_LIMIT
from ..planner.problem import Choice, Problem, grid_step, make_choices
from ..planner.refusal import refusal
from ..sensitivity.request import Request
from ..sensitivity.table import Scores, Sensitivity
from .structured_cost import Widths

METHOD = "structured-chita"


@dataclass(frozen=True)
class Room:
    """What may be removed.

    Attributes:
        program: The whole network.
        target: The target.
        budget: The budget.
        settings: Of the planner: floor, patterns.
        choices: Allowed widths of all groups.
        limits: What the budget limits, as functions of all widths.
    """

    program: Program
    target: Target
    budget: Budget
    settings: Mapping[str, Any]
    choices: tuple[Choice, ...]
    limits: tuple[Limit, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that may shrink."""
        return tuple(choice.group for choice in self.choices if choice.scores is not None)

    def at(self, kept: Mapping[str, np.ndarray], share: float) -> Widths:
        """The costs of removing more units, limited to a share of the whole cut.

        Args:
            kept: Units of each group that are left.
            share: Of the way from the whole network to the budget, 0 to 1.
        """
        free = [choice for choice in self.choices if choice.scores is not None]
        sizes = [len(kept[choice.group.name]) for choice in free]
        places = [choice.column for choice in free]
        full = np.array([choice.group.width for choice in self.choices], dtype=np.int64)

        def costs(widths: np.ndarray) -> np.ndarray:
            whole = np.tile(full, (len(widths), 1))
            whole[:, places] = widths
            return np.stack([limit.column.cost(whole) for limit in self.limits], axis=1)

        dense = costs(full[places][None])[0]
        bound = np.array([limit.bound for limit in self.limits])
        limits = np.where(bound < dense, dense - share * (dense - bound), bound) + 1e-9 * dense
        step = np.array([grid_step(choice.group, self.target.align_int8) for choice in free], dtype=np.int64)
        least = np.array([choice.widths[-1] for choice in free], dtype=np.int64)
        return Widths(np.repeat(np.arange(len(sizes)), sizes), step, least, costs, limits)

    def plan(
        self,
        removed: Mapping[str, Sequence[int]],
        rises: Mapping[str, float],
        total: float,
        settings: Mapping[str, Any],
    ) -> Plan:
        """The plan.

        Args:
            removed: Units that go, by group.
            rises: Predicted rise if only those of one group went.
            total: Predicted rise of all.
            settings: How it was found; holds the seed.
        """
        model = CostModel.of(self.program)
        groups = {c.group.name: _line(c, removed.get(c.group.name, ()), rises, model) for c in self.choices}
        return Plan(
            target=self.target.name,
            budget=self.budget.given(),
            method=METHOD,
            unit="loss" if settings["curvature"] == "loss" and settings["model"] != "relative" else "score",
            seed=settings["seed"],
            settings={"by": METHOD, **self.settings, **settings, "align": self.target.align_int8},
            program=fingerprint(self.program.groups),
            dense=model.dense,
            planned=model.cost({name: line.width - len(line.removed) for name, line in groups.items()}),
            delta_loss=_rounded(total),
            std_error=0.0,
            groups=groups,
        )


def room_of(
    program: Program,
    target: Target,
    budget: Budget,
    *,
    floor: float,
    ignore: Sequence[str],
    stopwatch: Stopwatch | None,
    latency_margin: float,
) -> Room:
    """The room that a budget leaves in a program; a budget on latency is measured for.

    Raises:
        UserError: No budget that can be planned for, or an argument out of range.
        BudgetError: The budget cannot be met.
    """
    if not (isfinite(floor) and 0.0 <= floor <= 1.0):
        raise UserError(
            f"the floor is a share from 0 to 1, not {floor}",
            where="plan.floor",
            hint="0.1 keeps a tenth of every group",
        )
    groups = Request(program).groups
    even = Sensitivity(METHOD, "loss", {g.name: Scores(np.ones(g.width), np.zeros(g.width)) for g in groups})
    choices = make_choices(program.groups, even, align=target.align_int8, floor=floor, ignore=tuple(ignore))
    costs = Costs(program, target, stopwatch)
    measured = costs.measure([choice.widths for choice in choices]) if budget.latency is not None else None
    limits = costs.limits(budget, measured.models if measured else {}, measured, latency_margin)
    if not limits:
        raise UserError(
            "there is no budget to plan for",
            where="budget",
            why=f"given: {', '.join(budget.given()) or 'none'}",
            hint="add --max-macs 50%, or a budget on latency, parameters, size or memory",
        )
    problem = Problem(choices, tuple(limit.column for limit in limits), np.array([limit.bound for limit in limits]))
    error = refusal(problem, limits, TIME_LIMIT)
    if error is not None:
        raise error
    return Room(program, target, budget, {"floor": floor, "ignore": list(ignore)}, choices, limits)


def _line(choice: Choice, removed: Sequence[int], rises: Mapping[str, float], model: CostModel) -> GroupPlan:
    """The line of one group."""
    name, width = choice.group.name, choice.group.width
    if choice.scores is None:
        return GroupPlan(width, reason=choice.reason)
    if not removed:
        return GroupPlan(width, reason="any cut costs more than cuts elsewhere")
    alone, dense = model.cost({name: width - len(removed)}), model.dense
    return GroupPlan(
        width=width,
        removed=tuple(int(unit) for unit in removed),
        delta_loss=_rounded(rises[name]),
        params=alone.params - dense.params,
        macs=alone.macs - dense.macs,
        reason="chosen jointly with the other groups",
    )


def _rounded(value: float) -> float:
    """Three significant digits, as in every plan."""
    return float(f"{value:.2e}")
