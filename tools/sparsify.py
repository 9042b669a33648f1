"""`secateur sparsify`: makes weights of a recipe's network zero, and writes what came of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from safetensors.torch import save_file

from ..errors import UserError
from ..export.artifact import install
from ..export.export import export
from ..passes.program import Program
from ..sparsity import SparsifyJob, sparsify_settings
from .console import ConsoleReporter, stdout_console

FACTS = "sparsify.json"
ARTIFACT = "artifact"
PROGRAM = "program"
WEIGHTS = "weights.safetensors"


def run_sparsify(
    source: Path,
    out: Path | None,
    options: Mapping[str, Any],
    overrides: Mapping[str, Any],
    *,
    heal: bool,
    int8: bool,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Sparsifies, heals and quantises if asked to, and exports.

    Args:
        source: A recipe or a run directory.
        out: Where to write; `runs/NAME-sparse` if None.
        options: Fields of `SparsifySettings`.
        overrides: Values of the recipe by dotted key.
        heal: Fine-tunes by the recipe, zeros kept.
        int8: Quantises by the recipe.
        force: Replaces what `out` holds of an earlier one.
        as_json: Prints one JSON document.
        quiet: No progress.

    Returns:
        The exit code.
    """
    if isinstance(options.get("sparsity"), str):
        options = {**options, "sparsity": _share(str(options["sparsity"]))}
    settings = sparsify_settings(options)
    folder = out or Path("runs") / f"{source.stem}-sparse"
    if folder.exists() and any(folder.iterdir()) and not ((folder / FACTS).is_file() and force):
        raise UserError(
            "the folder is not empty",
            where=str(folder),
            hint="name another with --out, or replace an earlier sparsify with --force",
        )
    _can_write(folder)
    with ConsoleReporter(quiet=quiet) as reporter:
        job = SparsifyJob(source, overrides, reporter)
        reporter.step("sparsify", "started", settings.method)
        result = job.sparsify(settings)
        for name, reason in result.dense.items():
            reporter.note(f"{name} stays dense: {reason}")
        program, scores = result.program, {"dense": job.score(job.dense), "sparse": job.score(result.program)}
        if heal:
            reporter.step("heal", "started")
            program = job.heal(program)
            scores["healed"] = job.score(program)
        if int8:
            reporter.step("quantize", "started")
            program = job.quantize(program)
            scores["int8"] = job.score(program)
        facts = {
            **result.facts,
            "scores": scores,
            "zeros_by_weight": dict(result.zeros),
            "stay_dense": {name: str(reason) for name, reason in result.dense.items()},
        }
        _write(folder, program, job, facts)
    document = {"directory": str(folder), "artifact": str(folder / ARTIFACT), **facts}
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        console = stdout_console()
        console.print(_table(facts))
        console.print(f"artifact: {folder / ARTIFACT}", markup=False, soft_wrap=True)
    return 0


def _share(text: str) -> float:
    """A share, written as 0.7 or 70%.

    Raises:
        UserError: It is neither.
    """
    try:
        return float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        raise UserError(f"{text!r} is no share of the weights", where="--sparsity", hint="write 0.7 or 70%") from None


def _can_write(folder: Path) -> None:
    """Finds out before the work, not after it, whether its result can be written.

    Raises:
        UserError: It cannot.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}."):
            pass
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(
            "the result cannot be written", where=str(folder), why=why, hint="name another with --out"
        ) from None


def _write(folder: Path, program: Program, job: SparsifyJob, facts: Mapping[str, Any]) -> None:
    """Writes beside the folder first, so that an earlier result is replaced whole or not at all."""
    stage = folder.parent / f".{folder.name}.partial"
    shutil.rmtree(stage, ignore_errors=True)  # of one that was killed
    stage.mkdir(parents=True)
    try:
        program.save(stage / PROGRAM, pt2=True)
        state = {name: value.detach().clone().contiguous() for name, value in program.module().state_dict().items()}
        save_file(state, stage / WEIGHTS)
        export(program, stage / ARTIFACT, target=job.recipe.target, baseline=job.dense)
        (stage / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
        install(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _table(facts: Mapping[str, Any]) -> Table:
    table = Table(title=None)
    for column in ("", "value"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("method", str(facts["method"]))
    table.add_row("weights", f"{facts['weights']:,}")
    table.add_row("zeros", f"{facts['zeros']:,} ({facts['zeros'] / facts['weights']:.2%})")
    for name, value in facts["scores"].items():
        table.add_row(f"test metric, {name}", f"{value:.4f}")
    if "gradient_memory" in facts:
        table.add_row("gradients", f"{facts['rows']} rows, {facts['gradient_memory']} ({facts['storage']})")
    table.add_row("seconds", f"{facts['seconds']:.1f}")
    return table
