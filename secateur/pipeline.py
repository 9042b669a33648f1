"""Runs the steps of a compile in order, keeps what did not change, and continues where it was stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .compress.heal.randomness import seeded
from .compress.planner.plan import check_budget
from .disk import disk_errors
from .environment import environment
from .errors import UserError, did_you_mean
from .progress import Reporter, Silent
from .recipe import Recipe
from .recipe_file import load_recipe, parse_recipe, read_yaml, write_yaml
from .run_directory import RunDirectory
from .steps import STEPS, Context, Step
from .verdict import Verdict
from .version import __version__


@dataclass(frozen=True)
class CompileResult:
    """What a compile produced.

    Attributes:
        directory: The run directory.
        facts: Facts by step name (`heal`, `quantize`, …).
        verdict: What the gates said; None if the run stopped before them.
    """

    directory: Path
    facts: Mapping[str, Mapping[str, Any]]
    verdict: Verdict | None

    @property
    def artifact(self) -> Path:
        """The artifact's directory."""
        return self.directory / STEPS["export"].folder


def compile(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    until: str = "check",
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    force: bool = False,
    debug: bool = False,
    reporter: Reporter | None = None,
) -> CompileResult:
    """Runs a recipe into a run directory.

    Steps whose inputs did not change since the last run are kept; a step that was interrupted continues.

    Args:
        recipe: A recipe, or the path of one.
        out: The run directory.
        until: Name of the last step to run.
        overrides: Values by dotted key that replace those of the file.
        resume: Continues although the recipe differs from the one that the directory was made with; only the steps that
            the change concerns, and those after them, run again.
        force: Starts over; what the directory holds is removed.
        debug: Verifies the graph of every program that a step makes.
        reporter: Told about progress.

    Raises:
        UserError: Bad input, or a budget that cannot be met.
    """
    _one_process(str(out))
    if until not in STEPS:
        raise UserError(
            f"there is no step {until!r}{did_you_mean(str(until), STEPS)}", where="until", hint=", ".join(STEPS)
        )
    if not isinstance(recipe, Recipe | str | os.PathLike):
        raise UserError(
            f"a recipe is a path or a Recipe, not {type(recipe).__name__}",
            where="compile",
            hint="write it to a file: secateur init recipe.yaml shows its keys",
        )
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, note=(reporter or Silent()).note)
    run = RunDirectory(out)
    with run.locked(), disk_errors(run.path):
        if force:
            run.clear()
        _adopt(run, recipe, resume=resume)
        return _run_steps(run, recipe, until, reporter or Silent(), debug=debug)


def resume(
    directory: str | Path,
    *,
    until: str,
    reporter: Reporter | None = None,
    again: bool = False,
    debug: bool = False,
) -> CompileResult:
    """Continues a run directory with its own recipe, up to and including step `until`.

    Args:
        directory: The run directory.
        until: Name of the last step to run.
        reporter: Told about progress.
        again: Runs that last step even if its inputs did not change.
        debug: Verifies the graph of every program that a step makes.
    """
    _one_process(str(directory))
    run = RunDirectory.existing(directory)
    recipe = parse_recipe(read_yaml(run.recipe_file, what="resolved recipe"), where=str(run.recipe_file))
    with run.locked(), disk_errors(run.path):
        return _run_steps(run, recipe, until, reporter or Silent(), again=again, debug=debug)


def _one_process(directory: str) -> None:
    """Refuses several processes of a `torchrun`, which would write one run directory at once."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 and torch.distributed.is_torchelastic_launched():
        raise UserError(
            "a run directory is written by one process",
            where=directory,
            why=f"torchrun started {count}",
            hint="run this without torchrun; to train in several processes, call heal and quantize from Python "
            "(docs/heal.md)",
        )


def _adopt(run: RunDirectory, recipe: Recipe, *, resume: bool) -> None:
    """Makes `recipe` the recipe of the run; refuses to mix two recipes unless asked to."""
    resolved = recipe.model_dump(mode="json")
    begun = any(run.record(step.folder) for step in STEPS.values())  # else there is nothing that two recipes could mix
    if run.recipe_file.exists() and begun and not resume:
        before = parse_recipe(read_yaml(run.recipe_file, what="resolved recipe"), where=str(run.recipe_file))
        changed = [key for key, value in before.model_dump(mode="json").items() if resolved[key] != value]
        if changed:
            raise UserError(
                "this run directory was made with another recipe",
                where=str(run.path),
                why=f"different: {', '.join(changed)}",
                hint="--resume runs again what the change concerns, --force starts over, --out takes another directory",
            )
    # The manifest goes first: a directory that has one is known to be a run, whatever else a kill leaves out of it.
    run.write_manifest({**run.manifest(), "environment": environment(), "seed": recipe.seed})
    write_yaml(resolved, run.recipe_file)


def _run_steps(
    run: RunDirectory, recipe: Recipe, until: str, reporter: Reporter, *, again: bool = False, debug: bool = False
) -> CompileResult:
    if STEPS[until].number >= STEPS["plan"].number:
        check_budget(recipe.budget)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    context = Context(recipe, run, reporter, debug=debug)
    for step in STEPS.values():
        _run_step(step, context, again=again and step.name == until)
        if step.name == until:
            break
    facts = {name: record.facts for name, step in STEPS.items() if (record := run.record(step.folder))}
    verdict = None
    if until == "check":
        verdict = Verdict.from_json((run.folder(STEPS["check"].folder) / "verdict.json").read_text(encoding="utf-8"))
    return CompileResult(run.path, facts, verdict)


def _run_step(step: Step, context: Context, *, again: bool) -> None:
    run, reporter = context.run, context.reporter
    key = step_key(step, context)
    record = run.record(step.folder)
    if record and record.key == key and not again:
        changed = run.changed_files(step.folder)
        if not changed:
            reporter.step(step.name, "kept")
            return
        if all(name in step.editable for name in changed):
            reporter.step(step.name, "kept", f"{', '.join(changed)} was edited by hand, and is used as it is now")
            return
        raise UserError(
            f"step {step.folder} is incomplete or was changed",
            where=str(run.folder(step.folder) / changed[0]),
            why=f"{len(changed)} of its files are missing or differ from the manifest",
            hint="remove the folder to run this step again, or start over with --force",
        )
    reporter.step(step.name, "started")
    started = time.monotonic()
    # What a step draws (a loader that shuffles, say) must not depend on whether the steps before it ran or were kept.
    with seeded(context.recipe.seed, step.number), run.writing(step.folder, key) as scratch:
        facts = step.run(context, scratch)
        record = run.finish(step.folder, key, facts, started)
    reporter.step(step.name, "finished", f"{record.seconds:.1f} s")


def step_key(step: Step, context: Context) -> str:
    """Hash of everything that a step depends on now; a step is kept while it is that of its record."""
    recipe = context.recipe.model_dump(mode="json")
    parts = {
        "version": __version__,
        "sections": {name: recipe[name] for name in (*step.sections, "seed")},
        "inputs": {name: context.run.tree_hash(STEPS[name].folder, without=STEPS[name].beside) for name in step.needs},
        "files": dict(step.files(context.recipe)),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
