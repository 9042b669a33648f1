"""The step `plan`: what the recipe says about it, handed to the planner that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .compress.budget import Budget
from .compress.chita.structured import structured_chita
from .compress.cost.stopwatch import OrtStopwatch, can_time
from .compress.implants.loss import offer_implants
from .compress.implants.select import plan_within
from .compress.plan import Plan
from .compress.planner.drops import check_losses, measure_blocks, temperature_of
from .compress.planner.limits import PLANNED, Costs
from .compress.planner.plan import plan_with_frontier
from .compress.planner.stages import plan_in_stages
from .compress.sensitivity.table import Sensitivity
from .gates import LatencyGate
from .passes.program import Program
from .recipe import Recipe

if TYPE_CHECKING:
    from .steps import Context

PLAN = "plan.yaml"
FRONTIER = "frontier.json"


def make_plan(
    context: Context,
    program: Program,
    scores: Path,
    folder: Path,
    *,
    rank_again: Callable[[Program], Sensitivity],
) -> dict[str, Any]:
    """Plans as the recipe says.

    Args:
        context: What the steps share.
        program: The captured program.
        scores: File of its ranking.
        folder: Where the plan, and the frontier if it is asked for, are written.
        rank_again: Ranks a smaller program, for plans in stages.

    Returns:
        Facts for the manifest.
    """
    spec, budget = context.recipe.plan, _plannable(context)
    if spec.by == "structured-chita":
        joint = _plan_jointly(context, program)
        joint.save(folder / PLAN)
        return {"delta_loss": joint.delta_loss}
    table = Sensitivity.load(scores)
    options: dict[str, Any] = {
        "target": context.target,
        "floor": spec.floor,
        "by": spec.by,
        "ignore": tuple(spec.ignore),
        "stopwatch": _stopwatch(context) if budget.latency else None,
        "latency_margin": spec.latency_margin,
        "seconds": spec.search_seconds,
        "note": context.reporter.note,
    }
    if spec.by == "sensitivity" and table.interactions is not None:
        context.reporter.note("plan.by sensitivity compares scores: interactions only order units inside their group")
    facts: dict[str, Any] = {}
    if spec.jointly:
        options |= _beside(context, program, table)
    costs = Costs(program, context.target, options["stopwatch"])

    def make(within: Budget) -> Plan:
        def part_of(scores: Sensitivity, part: float) -> Plan:
            points = spec.frontier if part == 1.0 else 0
            plan, found = plan_with_frontier(points, program, scores, budget=within, part=part, costs=costs, **options)
            if found is not None:
                found.save(folder / FRONTIER)
            return plan

        if spec.stages == 1:
            return part_of(table, 1.0)
        staged = plan_in_stages(program, table, part_of, rank_again, stages=spec.stages, note=context.reporter.note)
        facts["stages"] = list(staged.stages)
        return staged.plan

    if spec.implant == "none" or spec.jointly:
        made = make(budget)
    else:
        if budget.latency or budget.size or budget.memory:
            context.reporter.note("latency, size and memory are planned for without implants; gates judge the artifact")
        made = plan_within(
            make,
            program,
            table,
            budget,
            form=spec.implant,
            ni_ratio=spec.ni_ratio,
            rank=spec.implant_rank,
            init=spec.implant_init,
        )
    made.save(folder / PLAN)
    measured = {name: dict(cost) for name, cost in made.measured.items()}
    return {"optimality": dict(made.optimality), **facts, **measured}


def plan_inputs(recipe: Recipe) -> Mapping[str, str]:
    """What a plan takes from sections that are not its own."""
    if recipe.plan.by != "structured-chita" and not recipe.plan.jointly:
        return _latency_gate(recipe)
    return {**_latency_gate(recipe), "data": recipe.data.model_dump_json(), "loss": recipe.loss}


def _beside(context: Context, program: Program, table: Sensitivity) -> dict[str, Any]:
    """Implants and blocks to choose from, with what each would lose on calibration data."""
    spec, data = context.recipe.plan, context.data.calibration
    found: dict[str, Any] = {}
    if spec.blocks == "drop":
        check_losses(table)  # before minutes of measuring
    if spec.ni_ratio == "auto":
        found["implants"] = offer_implants(
            program,
            data,
            spec.implant,
            rank=spec.implant_rank,
            init=spec.implant_init,
            seed=context.recipe.seed,
            progress=context.progress("implants tried"),
        )
        if not found["implants"].groups:
            context.reporter.note(f"no group of this network can have implants of the form {spec.implant}")
    if spec.blocks == "drop":
        found["blocks"] = measure_blocks(
            program,
            data,
            context.loss,
            samples=context.recipe.rank.samples,
            temperature=temperature_of(table) or 1.0,
            progress=context.progress("blocks tried"),
        )
        if not found["blocks"]:
            context.reporter.note("this network has no residual block that could be dropped")
    return found


def _plan_jointly(context: Context, program: Program) -> Plan:
    """The plan of structured-chita: from the data, not from the ranking."""
    spec, budget = context.recipe.plan, _plannable(context)
    found = structured_chita(
        program,
        context.data.calibration,
        context.loss,
        target=context.target,
        budget=budget,
        floor=spec.floor,
        ignore=tuple(spec.ignore),
        stopwatch=_stopwatch(context) if budget.latency else None,
        latency_margin=spec.latency_margin,
        seed=context.recipe.seed,
        progress=context.progress("stages"),
        **spec.structured.model_dump(),
    )
    return found.plan


def _plannable(context: Context) -> Budget:
    """The budgets that the planner is given: latency stays with its gate where layers cannot be timed."""
    budget, target = context.recipe.budget, context.target
    others = budget.model_copy(update={"latency": None})
    if budget.latency is None or can_time(target) or not any(others.amount(name) for name in PLANNED):
        return budget
    context.reporter.note(f"latency on {target.name} is not planned for, only gated: layers are timed on the CPU alone")
    return others


def _stopwatch(context: Context) -> OrtStopwatch:
    """Measures latency as its gate will."""
    gate = context.recipe.gates.latency or LatencyGate()
    return OrtStopwatch(
        context.target,
        batches=gate.batches,
        threads=gate.threads,
        seconds=context.recipe.plan.latency_seconds,
        progress=context.progress("layers timed"),
    )


def _latency_gate(recipe: Recipe) -> Mapping[str, str]:
    """What a plan for a latency takes from the gate on it."""
    gate = recipe.gates.latency or LatencyGate()
    return {"latency gate": f"{gate.batches} {gate.threads}"} if recipe.budget.latency else {}
