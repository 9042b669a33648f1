"""What a plan that was edited by hand comes to: the planner's predictions for the units that it lists now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ...passes.blocks import Block, find_blocks
from ...passes.program import Program
from ..budget import Budget
from ..cost.model import Cost, CostModel
from ..implants.cost import implants_save
from ..plan import BlockPlan, GroupPlan, Plan
from ..sensitivity.table import Sensitivity
from .blocks import cost_without, loss_of_drops
from .document import implants_rise
from .order import implant_rise, joint_rise

EDITED = "edited by hand"
"""The reason of a group whose numbers no longer were those of its units."""


def repredict(program: Program, plan: Plan, sensitivity: Sensitivity) -> Plan:
    """The plan with the costs and the predicted loss of the units that it lists; a plan as it was made stays as it is.

    Args:
        program: The program that the plan was made for.
        plan: A plan, edited or not.
        sensitivity: The ranking that it was made from. If the plan's method is another (one that needs no ranking),
            only costs are computed: nobody knows what an edit does to the loss.
    """
    model = CostModel.of(program)
    dense = model.dense
    known = (plan.method, plan.unit) == (sensitivity.method, sensitivity.unit)
    lines = {}
    for name, line in plan.groups.items():
        found = _line(program, model, name, line)
        if known:
            found = replace(found, **_loss(name, line, sensitivity))
        lines[name] = line if found == line else replace(found, reason=EDITED)
    blocks = {block.name: _block(program, block, plan.blocks[block.name]) for block in _blocks_of(program, plan)}
    told = replace(plan, groups=lines, dense=dense, blocks=blocks)
    told = replace(told, planned=cost_without(program, model, told))
    if known:
        removed = {name: line.removed for name, line in lines.items()}
        rise = joint_rise(sensitivity, removed) + implants_rise(lines, sensitivity) + loss_of_drops(blocks)
        errors = [line.std_error for line in lines.values()] + [b.std_error for b in blocks.values() if b.dropped]
        error = sum(error**2 for error in errors) ** 0.5
        told = replace(told, delta_loss=_rounded(rise), std_error=_rounded(error))
    same = (told.groups, told.planned, told.drops()) == (dict(plan.groups), plan.planned, plan.drops())
    # What is predicted for the whole may differ in how it was made (in stages): it stays while nothing was edited.
    return plan if same and blocks == dict(plan.blocks) else told


def edits(before: Plan, after: Plan) -> Iterator[str]:
    """What `repredict` changed, in sentences: the groups, the totals, and budgets that no longer hold."""
    changed = [name for name, line in after.groups.items() if line != before.groups[name]]
    changed += [name for name, block in after.blocks.items() if block != before.blocks.get(name)]
    if not changed and (after.planned, after.delta_loss) == (before.planned, before.delta_loss):
        return
    # A group that was set back to keep has nothing left to predict: only the totals tell of it.
    which = f": {', '.join(changed)}" if changed else ""
    loss = f"{after.delta_loss:.3g} ± {after.std_error:.2g} (was {before.delta_loss:.3g})"
    params = f"{after.planned.params:,} parameters (was {before.planned.params:,})"
    macs = f"{after.planned.macs:,} multiply-accumulates (was {before.planned.macs:,})"
    yield f"the plan was edited{which}; predicted {after.unit} {loss}, {params}, {macs}"
    budget = Budget(**dict(after.budget))
    for name in ("params", "macs"):
        amount, cost = budget.amount(name), getattr(after.planned, name)
        if amount is not None and cost > amount.of(getattr(after.dense, name)) + 1e-6:
            limit = after.budget[name]
            yield f"the edited plan does not meet the budget on {name}: {cost:,} remain, {limit} is allowed"


def _line(program: Program, model: CostModel, name: str, line: GroupPlan) -> GroupPlan:
    if not line.removed and not line.implanted:
        return replace(line, params=0, macs=0)
    width = {name: len(line.kept)}
    alone = model.cost(width)
    if line.implant is not None and line.implanted:
        alone = _less(alone, implants_save(program, width, {name: line.implant}))
    return replace(line, params=alone.params - model.dense.params, macs=alone.macs - model.dense.macs)


def _loss(name: str, line: GroupPlan, sensitivity: Sensitivity) -> dict[str, float]:
    scores, gone = sensitivity.groups.get(name), list(line.removed)
    if scores is None or not (gone or line.implanted):
        return {"delta_loss": 0.0, "std_error": 0.0}
    rise, error = implant_rise(scores, line.implanted, line.lost)
    return {
        "delta_loss": _rounded(joint_rise(sensitivity, {name: line.removed}) + rise),
        "std_error": _rounded(float(np.sqrt((scores.std_error[gone] ** 2).sum() + error**2))),
    }


def _blocks_of(program: Program, plan: Plan) -> list[Block]:
    return find_blocks(program, plan.blocks) if plan.blocks else []


def _block(program: Program, block: Block, line: BlockPlan) -> BlockPlan:
    """The line of a block with what it saves; what it costs was measured, and stays."""
    saved = CostModel.of(program, block).dense
    found = replace(line, params=-saved.params, macs=-saved.macs)
    return line if found == line else replace(found, reason=EDITED)


def _less(cost: Cost, saved: Cost) -> Cost:
    return replace(cost, params=cost.params - saved.params, macs=cost.macs - saved.macs)


def _rounded(value: float) -> float:
    """Three significant digits, as the planner writes them."""
    return float(f"{value:.2e}")
