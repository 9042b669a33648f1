"""The plan that a solution comes to, with what people want to know of every decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...passes.implant_form import Implant
from ..budget import Budget
from ..cost.memory import FLOAT_BYTES, memory_columns, peak
from ..cost.model import Cost, CostModel
from ..implants.cost import implants_save
from ..plan import BlockPlan, GroupPlan, Plan, fingerprint
from ..sensitivity.table import Sensitivity
from .beside import Beside
from .blocks import cost_without, loss_of_drops
from .limits import Costs
from .order import implant_rise, joint_rise
from .problem import Choice, Problem
from .rounds import Attempt


def document(
    attempt: Attempt,
    made: Sequence[Attempt],
    costs: Costs,
    sensitivity: Sensitivity,
    budget: Budget,
    settings: dict[str, Any],
    beside: Beside,
) -> Plan:
    """The plan that an attempt comes to.

    Args:
        attempt: The attempt.
        made: All attempts, it among them.
        costs: Costs of the program.
        sensitivity: The ranking.
        budget: The budget as it was given.
        settings: Settings of the planner.
        beside: Implants and blocks that there were to choose from.
    """
    problem, position = attempt.problem, attempt.solution.position
    blocks = _blocks(costs, problem, position, beside)
    holders = {
        group.name: offer.block.name
        for offer in beside.blocks
        if blocks[offer.block.name].dropped
        for group in costs.program.groups
        if offer.block.holds(group)
    }
    groups = {}
    for choice, place in zip(problem.choices, position, strict=False):
        name = choice.group.name
        line = _decide(choice, int(place), costs, sensitivity, beside, name in attempt.dropped)
        groups[name] = replace(line, reason=f"goes with the block {holders[name]}") if name in holders else line
    seed = sensitivity.facts.get("seed")
    delta_loss = joint_rise(sensitivity, {name: line.removed for name, line in groups.items()})
    delta_loss += implants_rise(groups, sensitivity) + loss_of_drops(blocks)
    errors = [line.std_error for line in groups.values()] + [b.std_error for b in blocks.values() if b.dropped]
    implants = {name: line.implant for name, line in groups.items() if line.implant is not None}
    plan = Plan(
        target=costs.target.name,
        budget=budget.given(),
        method=sensitivity.method,
        unit=sensitivity.unit,
        seed=seed if isinstance(seed, int) else None,
        settings={**settings, "align": costs.target.align_int8},
        program=fingerprint(costs.program.groups),
        dense=costs.model.dense,
        planned=costs.model.dense,
        delta_loss=_rounded(delta_loss),
        std_error=_rounded(sum(error**2 for error in errors) ** 0.5),
        groups=groups,
        optimality=_optimality(attempt),
        measured=_measured(attempt, made, costs, budget),
        implant_init=beside.implants.init if beside.implants is not None and implants else "least-squares",
        blocks=blocks,
    )
    return replace(plan, planned=cost_without(costs.program, costs.model, plan))


def implants_rise(groups: Mapping[str, GroupPlan], sensitivity: Sensitivity) -> float:
    """Predicted rise of the loss by all implants, as far as it is predicted."""
    scores = sensitivity.groups
    return sum(implant_rise(scores[n], line.implanted, line.lost)[0] for n, line in groups.items() if line.implanted)


def _blocks(costs: Costs, problem: Problem, position: np.ndarray, beside: Beside) -> dict[str, BlockPlan]:
    """The line of every block that there was to choose: what its drop costs and saves, done or not."""
    found = {}
    for offer, dropped in zip(beside.blocks, position[len(problem.choices) :], strict=True):
        saved = CostModel.of(costs.program, offer.block).dense
        found[offer.block.name] = BlockPlan(
            dropped=bool(dropped),
            delta_loss=_rounded(offer.delta_loss),
            std_error=_rounded(offer.std_error),
            params=-saved.params,
            macs=-saved.macs,
        )
    return found


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
        size = attempt.built.get("size", float(costs.size.cost(widths[None])[0]))
        found["size"] = {"predicted": _share(size / costs.dense_network.size), "bytes": round(size)}
    if budget.memory is not None:
        dense = peak(memory_columns(costs.program, bytes_per_element=FLOAT_BYTES), costs.full)
        most = attempt.built.get("memory", peak(costs.memory, widths))
        found["memory"] = {"predicted": _share(most / dense), "bytes": round(most)}
    return found


def _decide(
    choice: Choice, position: int, costs: Costs, sensitivity: Sensitivity, beside: Beside, noise: bool
) -> GroupPlan:
    """The line of one group; `noise` says that a cut of it was given up."""
    group, width, model = choice.group, int(choice.widths[position]), costs.model
    if choice.scores is None:
        return GroupPlan(group.width, reason=choice.reason)
    if position == 0:
        reason = "no cut of it gains more latency than noise" if noise else "any cut costs more than cuts elsewhere"
        return GroupPlan(group.width, reason=reason)
    first, count = group.width - width, int(choice.implanted[position]) if choice.implanted is not None else 0
    removed, implanted = choice.order[:first], choice.order[first : first + count]
    line = GroupPlan(width=group.width, removed=tuple(removed.tolist()))
    alone, dense = model.cost({group.name: width}), model.dense
    if count and beside.implants is not None and choice.ranks is not None:
        rank = int(choice.ranks[position]) or None
        implant = Implant(tuple(implanted.tolist()), beside.implants.form, rank)
        alone = less(alone, implants_save(costs.program, {group.name: width}, {group.name: implant}))
        line = replace(line, implant=implant, lost=_lost(choice, position, first, count))
    rise, error = implant_rise(choice.scores, line.implanted, line.lost)
    return replace(
        line,
        delta_loss=_rounded(joint_rise(sensitivity, {group.name: line.removed}) + rise),
        std_error=_rounded(float(np.sqrt((choice.scores.std_error[removed] ** 2).sum() + error**2))),
        params=alone.params - dense.params,
        macs=alone.macs - dense.macs,
        reason=_reason(choice, position, line),
    )


def _lost(choice: Choice, position: int, first: int, count: int) -> float:
    """Share of the scores of the implanted units that the planner counts as lost."""
    assert choice.steps is not None
    whole = float(choice.steps[first : first + count].sum())
    lost = float(choice.rise[position] - choice.steps[:first].sum())
    return _rounded(min(max(lost / whole, 0.0), 1.0)) if whole > 0 else 0.0


def _reason(choice: Choice, position: int, line: GroupPlan) -> str:
    if choice.implanted is not None:
        if line.implanted:
            return f"{len(line.implanted)} keep {1 - (line.lost or 0.0):.0%} of their score by an implant"
        return "chosen among widths and implants; it takes no implant"
    if position + 1 == len(choice.widths):
        return "cut to its floor"
    return f"a further cut would cost {_rounded(float(choice.rise[position + 1] - choice.rise[position])):g}"


def less(cost: Cost, saved: Cost) -> Cost:
    """A cost after something is saved."""
    return replace(cost, params=cost.params - saved.params, macs=cost.macs - saved.macs)


def _share(value: float) -> str:
    return f"{100 * value:.1f}%"


def _rounded(value: float) -> float:
    """Three significant digits: more would pretend, and people read them."""
    return float(f"{value:.2e}")
