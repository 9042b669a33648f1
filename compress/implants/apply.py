"""From a plan to the smaller program, with its implants."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from ...passes.blocks import drop_blocks, find_blocks, residual_blocks, silence_blocks
from ...passes.implant import Implanted, implant
from ...passes.implant_form import Implants
from ...passes.labels.selection import Keep
from ...passes.mask import mask
from ...passes.program import Program
from ...passes.prune import apply
from ..data import Loader
from ..plan import Plan
from .fit import fit_implants


def apply_plan(program: Program, plan: Plan, *, allow_unchanged: bool = False) -> Implanted:
    """Removes what a plan removes and puts its stand-ins in place; a pure function of the two.

    Args:
        program: The program; not changed.
        plan: The plan; checked by the caller.
        allow_unchanged: Whether a plan that changes nothing is fine.

    Raises:
        UserError: See `apply` and `implant`.
    """
    options: dict[str, Any] = {"init": plan.structural_init, "allow_unchanged": allow_unchanged}
    return rewrite(program, plan.keep(), plan.implants(), plan.drops(), **options)


def rewrite(
    program: Program,
    keep: Keep,
    implants: Implants,
    drops: Collection[str] = (),
    *,
    init: str = "center",
    allow_unchanged: bool = True,
) -> Implanted:
    """The network without what is removed and dropped, with stand-ins in place.

    Args:
        program: The program; not changed.
        keep: Kept units by group name.
        implants: What stands in for which units, by group name; they are kept.
        drops: Names of residual blocks whose branch goes.
        init: Weights of the stand-ins; see `implant`.
        allow_unchanged: Whether changing nothing is fine.
    """
    if implants:
        made = implant(program, implants, keep=keep, init=init)
    else:
        made = Implanted(apply(program, keep, allow_unchanged=allow_unchanged or bool(drops)))
    if not drops:
        return made
    blocks = residual_blocks(program)
    smaller = drop_blocks(made.program, drops, blocks)
    gone = {path for block in find_blocks(program, drops, blocks) for path in block.layers}
    stand_ins = tuple(stand_in for stand_in in made.stand_ins if stand_in.rows.layer not in gone)
    return Implanted(smaller, stand_ins, {path: rows for path, rows in made.rows.items() if rows.layer not in gone})


def mask_plan(program: Program, plan: Plan) -> Program:
    """The same function as `apply_plan` at full size: its oracle.

    Args:
        program: The program; not changed.
        plan: The plan; checked by the caller.
    """
    masked = mask(program, plan.keep(), implants=plan.implants(), init=plan.structural_init)
    if plan.drops():
        silence_blocks(masked, plan.drops())
    return masked


def apply_and_fit(
    program: Program, plan: Plan, loader: Loader, *, progress: Callable[..., Any] | None = None, **options: Any
) -> Implanted:
    """As `apply_plan`; then fits the stand-ins to data if the plan asks for it.

    Args:
        program: The program; not changed.
        plan: The plan; checked by the caller.
        loader: Batches; only the inputs are used.
        progress: Told `progress(done, total)` after every stand-in.
        options: Of `fit_implants`.
    """
    made = apply_plan(program, plan, allow_unchanged=True)
    if not made.stand_ins or plan.implant_init != "least-squares":
        return made
    fitted = fit_implants(program, made, loader, progress=progress, **options)
    return replace(made, program=fitted)
