"""The plan of a run, with predictions that hold although people may have edited it."""

from __future__ import annotations

from pathlib import Path

from .compress.plan import Plan
from .compress.planner.repredict import edits, repredict
from .compress.sensitivity.table import Sensitivity
from .passes.program import Program


def current_plan(file: Path, *, edited: bool, program: Path, table: Path) -> tuple[Plan, tuple[str, ...]]:
    """The plan in a file; if it was edited, with the predictions for what it lists now, and sentences on what changed.

    Args:
        file: The plan.
        edited: Whether it differs from what the planner wrote.
        program: Folder of the captured program.
        table: File of the ranking.

    Raises:
        UserError: The plan contradicts itself or does not belong to the program.
    """
    plan = Plan.load(file)
    if not edited:
        return plan, ()
    dense = Program.load(program)
    plan.check(dense)
    told = repredict(dense, plan, Sensitivity.load(table))
    return told, tuple(edits(plan, told))
