"""`sparsify`: unstructured and N:M zeros; the public function and what the command does with a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import inputs
from .arguments import expect_given, expect_loaders
from .compress.chita.constraints import check_sparsity
from .compress.chita.nm import parse_pattern
from .compress.data import Loader, LossFn
from .compress.heal.evaluate import cross_entropy, evaluate
from .compress.heal.heal import heal
from .compress.quantize import quantize
from .compress.sparsify import SparsifyResult
from .compress.sparsify import sparsify as _sparsify
from .compress.sparsify_options import options_of, unread
from .compress.sparsify_settings import SparsifySettings
from .errors import UserError
from .export.cpu import cpu_facts
from .export.targets import TARGETS, lacking_instructions
from .passes.program import Program
from .progress import Reporter
from .recipe import Recipe
from .recipe_file import load_recipe, parse_recipe, read_yaml
from .run_directory import RunDirectory
from .steps import PROGRAM, STEPS
from .validation import settings_of

_SOURCES = ("heal", "apply", "capture")
"""Steps of a run whose program may be sparsified, latest first."""


def sparsify(
    program: Program,
    loader: Loader | None = None,
    loss: LossFn | None = None,
    *,
    method: str = "reconstruct",
    sparsity: float | None = None,
    progress: Any = None,
    **options: Any,
) -> Program:
    """Makes weights zero and lets the others make up for them.

    Zeros stay zero in what follows (`heal`, `quantize`, `export`).

    Args:
        program: The program; stays as it is.
        loader: Training batches; None for `magnitude` with `batch_norm="kept"`.
        loss: `loss(output, target)`, a scalar mean; cross entropy if None.
        method: `reconstruct`, `chita++`, `chita`, `chita-bso`, `chita-cd`, or a baseline: `magnitude`, `woodfisher`,
            `cbs`, `m-fac`.
        sparsity: Share of the weights of convolutions and linear layers that become zero; 0.7 if neither it nor a
            `pattern`, which has a share of its own, is given.
        progress: Called as `progress(done, total, stage=…, …)`.
        options: Other fields of `SparsifySettings`: `pattern="2:4"`, `scope`, `block`, `macs`, `samples`, `ridge`, …

    Raises:
        UserError: Options that make no sense, or that the method does not read, or weights, gradients or data that
            cannot be used.
    """
    expect_given("sparsify", Program, program=program)
    expect_loaders("sparsify", loader=loader)
    asked = {} if sparsity is None else {"sparsity": sparsity}
    settings = sparsify_settings({"method": method, **asked, **options})
    return _sparsify(program, loader, loss or cross_entropy, settings=settings, progress=progress).program


def sparsify_settings(options: Mapping[str, Any]) -> SparsifySettings:
    """Settings from options.

    Raises:
        UserError: An option is unknown, has a value that it cannot have, or would do nothing.
    """
    settings = settings_of(SparsifySettings, options, where="sparsify")
    if settings.pattern is None:
        check_sparsity(settings.sparsity)
    else:
        parse_pattern(settings.pattern)
    idle = unread(settings, options)
    if idle:
        without = f"leave {'it' if len(idle) == 1 else 'them'} out"
        raise UserError(
            f"method {settings.method} does not read {', '.join(idle)}",
            where="sparsify",
            why="; ".join(dict.fromkeys(idle.values())),
            hint=f"{without}; with {settings.method} there is: {', '.join(options_of(settings.method))}",
        )
    return settings


class SparsifyJob:
    """A recipe or a run directory, whose network is sparsified.

    Args:
        source: A recipe, or a run directory; of the latter the latest float network is taken.
        overrides: Values of the recipe by dotted key.
        reporter: Told about progress.
    """

    def __init__(self, source: Path, overrides: Mapping[str, Any], reporter: Reporter) -> None:
        self.reporter = reporter
        if source.is_dir():
            if overrides:
                raise UserError(
                    "a run directory goes with its own recipe",
                    where=str(source),
                    why="--set changes a recipe",
                    hint="name the recipe instead",
                )
            run = RunDirectory.existing(source)
            self.recipe: Recipe = parse_recipe(read_yaml(run.recipe_file, what="resolved recipe"), where=str(source))
            folders = {step: run.folder(STEPS[step].folder) / PROGRAM for step in _SOURCES}
            found = next((folder for folder in folders.values() if folder.is_dir()), None)
            if found is None:
                raise UserError("no step of this run has finished", where=str(source), hint="secateur compile RECIPE")
            self.data = inputs.load_data(self.recipe.data)
            self.dense = Program.load(found).eval()
        else:
            self.recipe = load_recipe(source, overrides)
            self.data = inputs.load_data(self.recipe.data)
            spec = self.recipe.model
            self.dense = inputs.capture_on(inputs.load_model(spec), self.data.calibration, spec.dynamic).eval()
        self.loss = inputs.resolve(self.recipe.loss, inputs.LOSSES, key="loss")
        self.metric = inputs.resolve(self.recipe.metric, inputs.METRICS, key="metric")

    def sparsify(self, settings: SparsifySettings) -> SparsifyResult:
        """The sparse network."""
        return _sparsify(self.dense, self.data.train, self.loss, settings=settings, progress=self._progress("sparsify"))

    def heal(self, program: Program) -> Program:
        """Fine-tunes what is left by the recipe's `heal`; zeros stay."""
        settings = self.recipe.heal.model_copy(update={"keep_zeros": True})
        return heal(
            program,
            self.data.train,
            self.loss,
            teacher=self.dense,
            settings=settings,
            validation=self.data.validation,
            metric=self.metric,
            progress=self._progress("heal"),
        ).program

    def quantize(self, program: Program) -> Program:
        """Puts it on the target's INT8 grid by the recipe's `quantize`; zeros stay."""
        spec, target = self.recipe.quantize, TARGETS[self.recipe.target]
        if lack := lacking_instructions(target, cpu_facts()["instruction_sets"]):
            self.reporter.note(f"on this machine {lack}")
        tolerance = spec.tolerance if spec.when == "auto" and self.data.validation is not None else None
        return quantize(
            program,
            self.data.calibration,
            scheme=target.scheme,
            samples=spec.samples,
            observer=spec.observer,
            qat=None if spec.when == "never" else spec.qat,
            tolerance=tolerance,
            train=self.data.train,
            loss=self.loss,
            teacher=self.dense,
            validation=self.data.validation,
            metric=self.metric,
            progress=self._progress("quantize"),
        ).program

    def score(self, program: Program) -> float:
        """The metric on the test data."""
        return evaluate(program, self.data.test, self.metric).metric

    def _progress(self, task: str) -> Any:
        return lambda done, total, **info: self.reporter.progress(task, done, total, **info)
