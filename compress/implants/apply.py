"""From a plan to the smaller program, with its implants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...passes.implant import Implanted, implant
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
    implants = plan.implants()
    if not implants:
        return Implanted(apply(program, plan.keep(), allow_unchanged=allow_unchanged))
    return implant(program, implants, keep=plan.keep(), init=plan.structural_init)


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
    return Implanted(fitted, made.stand_ins, made.rows)
