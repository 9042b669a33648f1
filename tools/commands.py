"""The commands that run steps: they call the pipeline and print what came out."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..pipeline import CompileResult, compile, resume
from ..plan_step import FRONTIER
from ..steps import PLAN, STEPS
from .console import ConsoleReporter, stdout_console
from .frontier import show_frontier
from .ranking import describe_ranking, load_ranking, show_ranking
from .summary import as_document, step_table, summary_table


def run_steps(
    source: Path,
    out: Path | None,
    until: str,
    overrides: Mapping[str, Any],
    *,
    resume: bool,
    force: bool,
    debug: bool,
    as_json: bool,
    quiet: bool,
    require_device: bool = False,
) -> int:
    """Runs a recipe, or continues a run directory, up to a step; prints its result.

    Returns:
        The exit code: the verdict's if the gates ran.
    """
    with ConsoleReporter(quiet=quiet) as reporter:
        result = _run(source, out, until, overrides, resume_=resume, force=force, debug=debug, reporter=reporter)
    report = None
    if until == "check":
        report = write_run_report(result.directory, None)
    ranking = describe_ranking(*load_ranking(result.directory / STEPS["rank"].folder)) if until == "rank" else None
    if as_json:
        found = as_document(result, report) | ({"ranking": ranking} if ranking else {})
        print(json.dumps(found, indent=1))
    else:
        console = stdout_console()
        if ranking:
            show_ranking(console, ranking)
            console.print(f"ranking: {result.directory / STEPS['rank'].folder}", markup=False, soft_wrap=True)
        else:
            console.print(summary_table(result) if until == "check" else step_table(result, until))
        if result.verdict is not None:
            console.print(result.verdict.table())
        if until == "plan":
            show_frontier(console, result.directory / STEPS["plan"].folder / FRONTIER)
            console.print(f"plan: {result.directory / STEPS['plan'].folder / PLAN}", markup=False, soft_wrap=True)
        if until in {"export", "check"}:
            console.print(f"artifact: {result.artifact}", markup=False, soft_wrap=True)
        if report:
            console.print(f"report: {report}", markup=False, soft_wrap=True)
    if result.verdict is not None and require_device:
        result.verdict.require_device()
    return result.verdict.exit_code if result.verdict else 0


def run_check(
    source: Path,
    gates: Path | None,
    limits: Mapping[str, Any],
    *,
    junit: Path | None,
    require_device: bool = False,
    as_json: bool,
    quiet: bool,
) -> int:
    """Checks a run directory or an artifact.

    Returns:
        0, or 3 if a gate failed.

    Raises:
        EnvironmentLacksError: A device is required, and gates were skipped for want of it.
    """
    from ..checking import check
    from .gate_file import gates_for

    artifact, asked = gates_for(source, gates, limits)
    with ConsoleReporter(quiet=quiet) as reporter:
        reporter.step("check", "started", str(artifact))
        if lack := _lack(artifact):
            reporter.note(f"on this machine {lack}")
        verdict = check(artifact, asked.gates, data=asked.data, metric=asked.metric, junit=junit)
    print(verdict.to_json()) if as_json else stdout_console().print(verdict.table())
    if require_device:
        verdict.require_device()
    return verdict.exit_code


def _lack(artifact: Path) -> str:
    """What this processor lacks of what an artifact was made for; "" also if there is no artifact."""
    from ..export.artifact import Artifact
    from ..export.cpu import cpu_facts
    from ..export.targets import TARGETS, lacking_instructions

    try:
        target = TARGETS.get(str(Artifact.load(artifact).manifest.get("target")))
    except UserError:
        return ""  # `check` says what is wrong with it
    return lacking_instructions(target, cpu_facts()["instruction_sets"]) if target else ""


def write_run_report(source: Path, out: Path | None) -> Path:
    """Writes the HTML report of a run directory.

    Returns:
        Its path.
    """
    from .report import write_report
    from .report_data import report_data

    path = out or source / "report.html"
    write_report(report_data(source), path)
    return path


def command_line() -> str:
    """The command that was typed, for the report."""
    return "secateur " + shlex.join(sys.argv[1:])


def _run(
    source: Path,
    out: Path | None,
    until: str,
    overrides: Mapping[str, Any],
    *,
    resume_: bool,
    force: bool,
    debug: bool,
    reporter: ConsoleReporter,
) -> CompileResult:
    if not source.is_dir():
        return compile(
            source,
            out or Path("runs") / source.stem,
            until=until,
            overrides=overrides,
            resume=resume_,
            force=force,
            debug=debug,
            reporter=reporter,
        )
    if overrides or out or force:
        raise UserError(
            "a run directory is continued with its own recipe",
            where=str(source),
            why="--out, --force, --set and budgets belong to a recipe",
            hint=f"secateur {until} RECIPE --out {source} --resume …",
        )
    return resume(source, until=until, debug=debug, reporter=reporter)
