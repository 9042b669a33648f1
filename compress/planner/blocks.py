"""What a plan that drops blocks costs, and what it is predicted to lose by them."""

from __future__ import annotations

from collections.abc import Mapping

from ...passes.blocks import find_blocks
from ...passes.program import Program
from ..cost.model import Cost, CostModel
from ..implants.cost import implants_save
from ..plan import BlockPlan, Plan


def loss_of_drops(blocks: Mapping[str, BlockPlan]) -> float:
    """Measured rises of the loss of the blocks that are dropped, added up; one that falls is noise."""
    return sum(max(block.delta_loss, 0.0) for block in blocks.values() if block.dropped)


def cost_without(program: Program, model: CostModel, plan: Plan) -> Cost:
    """Exact parameters and multiply-accumulates of what a plan leaves: widths, implants and dropped blocks.

    Args:
        program: The program before anything is removed.
        model: Its cost model.
        plan: The plan; its `planned` is not read.
    """
    widths = {name: len(line.kept) for name, line in plan.groups.items()}
    blocks = find_blocks(program, plan.drops()) if plan.drops() else []
    saved = [CostModel.of(program, block).cost(widths) for block in blocks]
    if plan.implants():
        gone = {path for block in blocks for path in block.layers}
        saved.append(implants_save(program, widths, plan.implants(), gone))
    whole = model.cost(widths)
    return Cost(whole.params - sum(cost.params for cost in saved), whole.macs - sum(cost.macs for cost in saved))
