"""The eight steps of a compile: what each reads, and what it writes into its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import inputs
from .checking import check
from .compress.cost.model import count
from .compress.data import LossFn, MetricFn
from .compress.heal.evaluate import evaluate
from .compress.heal.heal import heal
from .compress.implants.apply import apply_and_fit
from .compress.plan import Plan
from .compress.quantize import quantize
from .compress.sensitivity.rank import rank
from .compress.sensitivity.table import Sensitivity
from .compress.sensitivity.verify import verify_ranking
from .edited_plan import current_plan
from .export.cpu import cpu_facts
from .export.export import export
from .export.hashing import hash_file
from .export.targets import TARGETS, Target, lacking_instructions
from .factory import source_file
from .kept_scores import keep_table, table_key
from .passes.program import Program
from .passes.verify import verify
from .plan_step import PLAN, make_plan, plan_inputs
from .progress import Reporter
from .recipe import Recipe
from .run_directory import STATE, RunDirectory

PROGRAM = "program"
TABLE = "sensitivity.safetensors"
VERIFICATION = "verification.json"


class Context:
    """What the steps share: recipe, run directory, and what the recipe names, made when first needed."""

    def __init__(self, recipe: Recipe, run: RunDirectory, reporter: Reporter, *, debug: bool = False) -> None:
        self.recipe, self.run, self.reporter, self.debug = recipe, run, reporter, debug

    @cached_property
    def data(self) -> inputs.Data:
        """The loaders."""
        return inputs.load_data(self.recipe.data)

    @cached_property
    def loss(self) -> LossFn:
        """The loss."""
        return inputs.resolve(self.recipe.loss, inputs.LOSSES, key="loss")

    @cached_property
    def metric(self) -> MetricFn:
        """The metric."""
        return inputs.resolve(self.recipe.metric, inputs.METRICS, key="metric")

    @property
    def target(self) -> Target:
        """The target."""
        return TARGETS[self.recipe.target]

    def program(self, step: str) -> Program:
        """The program that a finished step wrote."""
        return Program.load(self.run.folder(STEPS[step].folder) / PROGRAM)

    def keep(self, program: Program, folder: Path) -> None:
        """Writes the program that a step made; checks its graph first if asked to."""
        if self.debug:
            verify(program)
        program.save(folder / PROGRAM)

    def score(self, program: Program, *, test: bool = True) -> dict[str, float]:
        """The metric of a program on the test set, and on the validation split where there is one."""
        found = {}
        if self.data.validation is not None:
            found["validation"] = evaluate(program, self.data.validation, self.metric).metric
        if test:
            found["test"] = evaluate(program, self.data.test, self.metric).metric
        return found

    def progress(self, task: str) -> Callable[..., None]:
        """A callback that reports under the name `task`."""
        return lambda done, total, **info: self.reporter.progress(task, done, total, **info)


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        number: Position in the run.
        name: Name of the step and of its command.
        sections: Keys of the recipe that it reads.
        needs: Steps whose output it reads.
        run: Does it, writing into the folder given; returns facts for the manifest.
        files: Hashes of files outside the run directory that it reads, and single keys of sections not its own.
        editable: Files in its folder that a person may change by hand.
        beside: Files in its folder that no other step reads.
    """

    number: int
    name: str
    sections: tuple[str, ...]
    needs: tuple[str, ...]
    run: Callable[[Context, Path], Mapping[str, Any]]
    files: Callable[[Recipe], Mapping[str, str]] = lambda recipe: {}
    editable: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def folder(self) -> str:
        """Name of its folder in the run directory."""
        return f"{self.number:02d}-{self.name}"


def _capture(context: Context, folder: Path) -> dict[str, Any]:
    spec = context.recipe.model
    program = inputs.capture_on(inputs.load_model(spec), context.data.calibration, spec.dynamic).eval()
    context.keep(program, folder)
    frozen = {g.name: str(g.frozen) for g in program.groups if g.frozen}
    if program.static_batch:
        context.reporter.note(f"the batch size is fixed: {program.static_batch}")
    for note in program.notes:
        context.reporter.note(note)
    for name, reason in frozen.items():
        context.reporter.note(f"{name} stays whole: {reason}")
    return {
        "cost": _cost(program),
        "groups": {g.name: g.width for g in program.groups if not g.frozen},
        "frozen": frozen,
        "static_batch": program.static_batch,
        "notes": list(program.notes),
        "score": context.score(program),
    }


def _rank(context: Context, folder: Path) -> dict[str, Any]:
    spec = context.recipe.rank
    program = context.program("capture")
    if all(group.frozen for group in program.groups):
        context.reporter.note("nothing in this network can be removed, so there is nothing to rank")
        Sensitivity(spec.method, "loss", {}, {"seed": context.recipe.seed}).save(folder / TABLE)
        return {"method": spec.method, "unit": "loss"}
    key = table_key(context.recipe, context.run.tree_hash(STEPS["capture"].folder), _data_files(context.recipe))
    if keep_table(context.run, STEPS["rank"].folder, TABLE, key, folder):
        context.reporter.note("the scores are kept; only their verification is another")
    else:
        _ranking(context, program).save(folder / TABLE)
    table = Sensitivity.load(folder / TABLE)
    facts = {"method": table.method, "unit": table.unit, **table.facts, **spec.options, "table_key": key}
    if not spec.verify:
        return facts
    verification = verify_ranking(
        program,
        table,
        context.data.calibration,
        context.loss,
        units=spec.verify,
        samples=spec.samples,
        batch_norm=spec.verify_batch_norm,
        seed=context.recipe.seed,
        progress=context.progress("verify"),
    )
    verification.save(folder / VERIFICATION)
    return {**facts, "verification": verification.summary()}


def _ranking(context: Context, program: Program) -> Sensitivity:
    """Ranks a program as the recipe says."""
    spec = context.recipe.rank
    return rank(
        program,
        context.data.calibration,
        context.loss,
        method=spec.method,
        samples=spec.samples,
        probes=spec.probes,
        seed=context.recipe.seed,
        progress=context.progress("rank"),
        **spec.options,
    )


def _plan(context: Context, folder: Path) -> dict[str, Any]:
    program, scores = context.program("capture"), context.run.folder(STEPS["rank"].folder) / TABLE
    return make_plan(context, program, scores, folder, rank_again=lambda smaller: _ranking(context, smaller))


def _apply(context: Context, folder: Path) -> dict[str, Any]:
    dense = context.program("capture")
    chosen = Plan.load(context.run.folder(STEPS["plan"].folder) / PLAN)
    chosen.check(dense)
    for sentence in plan_of(context.run)[1]:
        context.reporter.note(sentence)
    made = apply_and_fit(dense, chosen, context.data.calibration, progress=context.progress("implants"))
    context.keep(made.program, folder)
    implants = {s.rows.layer: {"form": s.form, "filters": len(s.rows.index)} for s in made.stand_ins}
    facts = {"implants": {"init": chosen.implant_init, "layers": implants}} if implants else {}
    return {"cost": _cost(made.program), "score": context.score(made.program), **facts}


def plan_of(run: RunDirectory) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a run as it is now; see `current_plan`."""
    step, table = STEPS["plan"].folder, run.folder(STEPS["rank"].folder) / TABLE
    edited = PLAN in run.changed_files(step)
    program = run.folder(STEPS["capture"].folder) / PROGRAM
    return current_plan(run.folder(step) / PLAN, edited=edited, program=program, table=table)


def _heal(context: Context, folder: Path) -> dict[str, Any]:
    chosen = Plan.load(context.run.folder(STEPS["plan"].folder) / PLAN)
    result = heal(
        context.program("apply"),
        context.data.train,
        context.loss,
        teacher=context.program("capture"),
        keep=chosen.keep(),
        implants=chosen.implants(),
        settings=context.recipe.heal,
        validation=context.data.validation,
        metric=context.metric,
        state_dir=folder / STATE,
        progress=context.progress("heal"),
    )
    context.keep(result.program, folder)
    return {
        "start": result.start,
        "score_before": {
            name: evaluate(start, context.data.test, context.metric).metric for name, start in result.starts.items()
        },
        "score": context.score(result.program),
        "chosen": result.chosen,
        "history": result.history,
    }


def _quantize(context: Context, folder: Path) -> dict[str, Any]:
    spec, data = context.recipe.quantize, context.data
    if lack := lacking_instructions(context.target, cpu_facts()["instruction_sets"]):
        context.reporter.note(f"on this machine {lack}")
    automatic = spec.when == "auto" and data.validation is not None
    if spec.when == "auto" and not automatic:
        context.reporter.note("there is no validation split, so the INT8 network is trained without asking")
    result = quantize(
        context.program("heal"),
        data.calibration,
        scheme=context.target.scheme,
        samples=spec.samples,
        observer=spec.observer,
        qat=None if spec.when == "never" else spec.qat,
        tolerance=spec.tolerance if automatic else None,
        train=data.train,
        loss=context.loss,
        teacher=context.program("capture"),
        validation=data.validation,
        metric=context.metric,
        state_dir=folder / STATE,
        progress=context.progress("quantize"),
    )
    context.keep(result.program, folder)
    stays_float = {name: str(refused) for name, refused in result.journal}
    for name, reason in stays_float.items():
        context.reporter.note(f"{name} stays float: {reason}")
    return {
        "score": context.score(result.program),
        "chosen": result.chosen,
        "float": stays_float,
        "history": result.history,
    }


def _export(context: Context, folder: Path) -> dict[str, Any]:
    artifact = export(
        context.program("quantize"),
        folder,
        target=context.target,
        baseline=context.program("capture"),
        engine=context.recipe.engine,
        progress=context.progress("engine"),
        facts={"cost": {"dense": _cost(context.program("capture")), "compiled": _cost(context.program("heal"))}},
    )
    for name, why in artifact.manifest.get("engines_missing", {}).items():
        context.reporter.note(f"no engine of {name}: {why}")
    return {"kernels": artifact.manifest["kernels"]}


def _check(context: Context, folder: Path) -> dict[str, Any]:
    verdict = check(
        context.run.folder(STEPS["export"].folder),
        context.recipe.gates,
        data=context.recipe.data,
        metric=context.recipe.metric,
        junit=folder / "junit.xml",
        verdict=folder / "verdict.json",
    )
    return {"passed": verdict.passed}


def _cost(program: Program) -> dict[str, int]:
    cost = count(program)
    return {"params": cost.params, "macs": cost.macs}


def _model_files(recipe: Recipe) -> dict[str, str]:
    """Hashes of the checkpoint and of factories that are files, so that a change of either is seen."""
    named = [recipe.model.checkpoint, source_file(recipe.model.factory)]
    return {str(path): hash_file(Path(path)) for path in named if path and Path(path).is_file()}


def _data_files(recipe: Recipe) -> dict[str, str]:
    path = source_file(recipe.data.factory)
    return {str(path): hash_file(Path(path))} if path and Path(path).is_file() else {}


_ALL = (
    Step(1, "capture", ("model", "data", "metric"), (), _capture, lambda r: {**_model_files(r), **_data_files(r)}),
    Step(2, "rank", ("data", "loss", "rank"), ("capture",), _rank, beside=(VERIFICATION,)),
    Step(3, "plan", ("budget", "target", "plan"), ("capture", "rank"), _plan, plan_inputs, (PLAN,)),
    Step(4, "apply", ("data", "metric"), ("capture", "plan"), _apply),
    Step(5, "heal", ("data", "loss", "metric", "heal"), ("capture", "plan", "apply"), _heal),
    Step(6, "quantize", ("data", "loss", "metric", "target", "quantize"), ("capture", "heal"), _quantize),
    Step(7, "export", ("target", "engine"), ("capture", "heal", "quantize"), _export),
    Step(8, "check", ("data", "metric", "gates", "budget"), ("export",), _check),
)
STEPS: Mapping[str, Step] = {step.name: step for step in _ALL}
