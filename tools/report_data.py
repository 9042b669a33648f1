"""Collects from a run directory what its report shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..compress.plan import Plan
from ..compress.planner.frontier import Frontier
from ..compress.sensitivity.table import Sensitivity
from ..compress.sensitivity.verify import Verification
from ..errors import UserError
from ..plan_step import FRONTIER
from ..recipe import Recipe
from ..recipe_file import parse_recipe, read_yaml
from ..run_directory import RunDirectory
from ..steps import STEPS, plan_of
from ..verdict import Verdict
from .ranking import load_ranking, verdict_on
from .report import GroupRow, ReportData, Stage
from .report_scatter import Scatter
from .summary import stages

_HIDDEN = frozenset({"torch", "seed", "verification", "table_key"})
"""Facts of a ranking that the report shows elsewhere, or that are for the machine."""


def report_data(source: Path, command: str = "") -> ReportData:
    """What the report of a finished run shows.

    Args:
        source: The run directory.
        command: What was typed.

    Raises:
        UserError: There is no run, or it stopped before its artifact.
    """
    run = RunDirectory.existing(source, read_only=True)
    manifest = run.manifest()
    facts = {name: record.facts for name, step in STEPS.items() if (record := run.record(step.folder))}
    missing = [name for name in STEPS if name not in facts and name != "check"]
    if missing:
        raise UserError(
            "this run has not come far enough for a report",
            where=str(source),
            why=f"step {missing[0]} has not finished",
            hint=f"secateur export {source}",
        )
    recipe = parse_recipe(read_yaml(run.recipe_file, what="resolved recipe"), where=str(run.recipe_file))
    verdict = verdict_of(run)
    table, verification = load_ranking(run.folder(STEPS["rank"].folder))
    plan, edited = plan_of(run)
    return ReportData(
        title=source.resolve().name,
        command=command or f"secateur compile {run.recipe_file} --out {source}",
        stages=[Stage(**row) for row in stages(facts, verdict.gates if verdict else ())],
        groups=list(_groups(plan, table)),
        verdict=verdict,
        metric=recipe.metric,
        score_unit=table.unit,
        verification=_scatter(verification) if verification else None,
        frontier=_frontier(run),
        facts=list(_facts(manifest, facts, recipe)),
        notes=[*edited, *_notes(facts)],
        files=files_of(run),
    )


def _frontier(run: RunDirectory) -> Frontier | None:
    path = run.folder(STEPS["plan"].folder) / FRONTIER
    return Frontier.load(path) if path.is_file() else None


def verdict_of(run: RunDirectory) -> Verdict | None:
    """What the gates said; None if they have not run."""
    path = run.folder(STEPS["check"].folder) / "verdict.json"
    return Verdict.from_json(path.read_text(encoding="utf-8")) if path.is_file() else None


def _groups(plan: Plan, table: Sensitivity) -> Iterator[GroupRow]:
    for name, line in plan.groups.items():
        scores = table.groups.get(name)
        yield GroupRow(
            name=name,
            total=line.width,
            kept=len(line.kept),
            delta_loss=line.delta_loss if line.removed else None,
            std_error=line.std_error if line.removed else None,
            reason=line.reason.removeprefix("frozen: "),
            frozen=scores is None,
            scores=scores.delta_loss.tolist() if scores else (),
            score_errors=scores.std_error.tolist() if scores else (),
            removed=line.removed,
        )


def _scatter(verification: Verification) -> Scatter:
    return Scatter(
        labels=[f"{group}, unit {unit}" for group, unit in zip(verification.groups, verification.units, strict=True)],
        predicted=verification.predicted,
        std_error=verification.std_error,
        measured=verification.measured,
        unit=verification.unit,
        text=list(verdict_on(verification.document())),
    )


def _facts(manifest: Mapping[str, Any], facts: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str]]:
    for key, value in manifest.get("environment", {}).items():
        yield key, " ".join(value) if isinstance(value, list) else str(value)
    yield "seed", str(recipe.seed)
    rank = facts["rank"]
    yield (
        "ranking",
        ", ".join(f"{key} {value}" for key, value in rank.items() if key not in _HIDDEN),
    )
    for name, found in facts.get("plan", {}).items():
        if isinstance(found, Mapping):
            yield f"plan, {name}", ", ".join(f"{key} {value}" for key, value in found.items())
    yield "healing", facts["heal"]["chosen"]
    yield "quantisation", facts["quantize"]["chosen"]
    for name, record in manifest["steps"].items():
        yield f"seconds, {name}", f"{record['seconds']:.1f}"


def _notes(facts: Mapping[str, Any]) -> Iterator[str]:
    capture = facts["capture"]
    if capture["static_batch"]:
        yield f"the batch size is fixed: {capture['static_batch']}"
    yield from capture.get("notes", ())
    for name, reason in capture["frozen"].items():
        yield f"{name} stays whole: {reason}"
    for name, reason in facts["quantize"]["float"].items():
        yield f"{name} stays float: {reason}"
    yield from facts.get("export", {}).get("notes", ())


def files_of(run: RunDirectory) -> Mapping[str, Mapping[str, Any]]:
    """sha256 and bytes of the artifact's files, by name; empty if there is none yet."""
    folder = run.folder(STEPS["export"].folder)
    if not (folder / "manifest.json").is_file():
        return {}
    from ..export.artifact import Artifact

    return Artifact.load(folder).manifest["files"]
