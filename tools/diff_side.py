"""One side of a comparison: a run directory, as far as it has come, or a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..compress.plan import Plan
from ..errors import UserError
from ..outdated import outdated_steps
from ..recipe_file import read_yaml
from ..run_directory import PARTIAL, RunDirectory, StepRecord
from ..steps import PLAN, STEPS, plan_of
from ..verdict import Verdict
from .inspect_documents import find_document
from .report_data import files_of, verdict_of


@dataclass(frozen=True)
class Side:
    """What is compared.

    Attributes:
        path: As it was typed.
        plan: The plan; None if a run has not come so far.
        recipe: The resolved recipe; None if this is a plan only.
        environment: Versions and processor of the run.
        steps: Records of the finished steps, by name.
        verdict: What the gates said; None if they have not run.
        files: sha256 and bytes of the artifact's files, by name.
        notes: What a reader has to know of it.
    """

    path: str
    plan: Plan | None
    recipe: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    steps: Mapping[str, StepRecord] = field(default_factory=dict)
    verdict: Verdict | None = None
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Mapping[str, Any]]:
        """Facts of the finished steps, by name."""
        return {name: record.facts for name, record in self.steps.items()}

    @property
    def missing(self) -> str:
        """The first step that has not finished; "" if all have."""
        return next((name for name in STEPS if name not in self.steps), "")

    @property
    def state(self) -> str:
        """How far it has come, in a few words."""
        if self.recipe is None:
            return "a plan"
        if not self.steps:
            return "a run of which no step has finished"
        last = list(self.steps)[-1]
        return f"a run, finished up to {last}" if self.missing else "a finished run"


def read_side(source: Path) -> Side:
    """Reads what a path names: a run directory, a plan, or the folder of one.

    Raises:
        UserError: It is neither, or damaged.
    """
    if not source.exists():
        raise UserError("there is nothing here", where=str(source), hint="check the path")
    if (source / "manifest.json").is_file() and (source / "recipe.yaml").is_file():
        return _read_run(source)
    document = find_document(source)
    if source.name == PLAN or (document is not None and document.suffix != ".json"):
        return Side(str(source), Plan.load(document or source))
    if source.is_dir():
        RunDirectory.existing(source, read_only=True)  # says what is missing, and of which run this is a part
    raise UserError(
        "this is neither a run directory nor a plan",
        where=str(source),
        why="diff compares two of those",
        hint="name the directory that --out named, or the plan in it: 03-plan/plan.yaml",
    )


def _read_run(source: Path) -> Side:
    run = RunDirectory.existing(source, read_only=True)
    recipe = read_yaml(run.recipe_file, what="resolved recipe")
    if not isinstance(recipe, dict):
        raise UserError(
            "the resolved recipe is damaged",
            where=str(run.recipe_file),
            why=f"it holds {type(recipe).__name__}, not keys with values",
            hint="start over with --force",
        )
    outdated = outdated_steps(run)
    steps: dict[str, StepRecord] = {}
    for name, step in STEPS.items():
        record = run.record(step.folder)
        if record is None or name in outdated:
            break  # what comes after it was not made from it
        steps[name] = record
    plan, notes = plan_of(run) if "plan" in steps else (None, ())
    if outdated:
        why = "not compared, as they were not made with the recipe and the plan that are there now"
        notes = (*notes, f"{', '.join(outdated)}: {why}; secateur compile {source} runs them again")
    begun = next((step.folder for name, step in STEPS.items() if (run.path / (step.folder + PARTIAL)).is_dir()), "")
    if begun:
        notes = (*notes, f"{begun} was begun and has not finished")
    return Side(
        path=str(source),
        plan=plan,
        recipe=recipe,
        environment=run.manifest().get("environment", {}),
        steps=steps,
        verdict=verdict_of(run) if "check" in steps else None,
        files=files_of(run) if "export" in steps else {},
        notes=notes,
    )
