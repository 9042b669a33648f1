"""Sparsity: weights of a program become zero, and the others make up for them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused, UserError
from ..passes.program import Program
from .baselines import magnitude
from .chita.constraints import Blocks, Constraint, PerLayer, TopK, check_sparsity
from .chita.data_matrix import DataMatrix, StoredMatrix, choose_storage, collect, human
from .chita.falcon import WeightsAndMacs
from .chita.gradients import Progress, Rows
from .chita.matrix_free import MatrixFree
from .chita.nm import NM, parse_pattern
from .chita.outputs import output_rows
from .chita.problem import Problem
from .chita.schedule import sparsities
from .chita.stage import LOW_RATES, RATES, RIDGES, HeldOut, Stage, Stream, tune
from .chita.variables import Variables, find_variables
from .data import Loader, LossFn
from .heal.bn import reestimate_batch_norm
from .heal.device import device_of
from .heal.evaluate import cross_entropy
from .heal.ridge import reconstruct
from .methods import METHODS, MethodInfo
from .sparsify_settings import SparsifySettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SparsifyResult:
    """What came out.

    Attributes:
        program: With zeros and updated weights, in evaluation mode.
        zeros: Share of zeros by name of the weight.
        dense: Weights that stay as they were, and why.
        facts: What it was measured on, and how: one entry a stage, storage, seconds.
    """

    program: Program
    zeros: Mapping[str, float]
    dense: Mapping[str, Refused]
    facts: Mapping[str, Any]


def sparsify(
    program: Program,
    loader: Loader | None,
    loss: LossFn = cross_entropy,
    *,
    settings: SparsifySettings | None = None,
    gradients: DataMatrix | None = None,
    progress: Progress | None = None,
) -> SparsifyResult:
    """Makes weights zero, choosing and updating them by second-order information from gradients of samples.

    Args:
        program: Stays as it is.
        loader: Training batches; None for `magnitude` without re-estimation of batch norm.
        loss: Mean loss of a batch.
        settings: What is asked for.
        gradients: Those that `gradients_of` gave for this program, loader and loss; several methods and sparsities may
            share them. For methods of one stage.
        progress: Told `progress(done, total, stage=…)`.

    Raises:
        UserError: Settings that make no sense, weights or gradients that are not finite, a loader that is empty.
        EnvironmentLacksError: Memory or disk do not suffice.
    """
    settings = _settled(settings or SparsifySettings())
    started = time.perf_counter()
    program = program.clone(step="sparsify").eval()
    variables = find_variables(program, settings.ignore)
    method = METHODS[settings.method]
    constraints, dense, targets = _constraints(program, variables, settings, method)
    if loader is None and (method.needs_data or settings.refit == "layers" or settings.batch_norm != "kept"):
        raise UserError(
            f"method {settings.method} needs data",
            where="sparsify",
            hint="give a loader, or take method='magnitude' with batch_norm='kept'",
        )
    if settings.model == "outputs" and (not settings.method.startswith("chita") or gradients is not None):
        raise UserError(
            "model='outputs' is for CHITA methods that take their own gradients",
            where="sparsify.model",
            hint="take method='chita++', or model='loss'",
        )
    if gradients is not None and not method.needs_data:
        raise UserError(f"method {settings.method} takes no gradients", where="sparsify", hint="leave them out")
    if gradients is not None and len(targets) > 1:
        raise UserError(
            f"method {settings.method} takes gradients anew in every stage", where="sparsify", hint="leave them out"
        )
    run = _Run(program, variables, loader, loss, settings, method, progress)
    run.given = gradients
    for number, (constraint, target) in enumerate(zip(constraints, targets, strict=True)):
        run.stage(number, len(targets), constraint, target)
    program = run.program
    if settings.batch_norm != "kept":
        assert loader is not None
        program = _reestimate(program, loader)
    zeros = {name: float((tensor == 0).float().mean()) for name, tensor in sorted(variables.tensors(program).items())}
    facts = {
        "method": settings.method,
        "weights": variables.size,
        "zeros": sum(int((t == 0).sum()) for t in variables.tensors(program).values()),
        "stages": run.journal,
        **run.facts,
        "settings": settings.model_dump(mode="json"),
        "device": str(device_of(program.module())),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return SparsifyResult(program, zeros, {**variables.refused, **dense}, facts)


def gradients_of(
    program: Program, loader: Loader, loss: LossFn = cross_entropy, *, settings: SparsifySettings | None = None
) -> DataMatrix:
    """The gradients that `sparsify` would take for the first stage, to be shared by several calls.

    Args:
        program: The network.
        loader: Training batches.
        loss: Mean loss of a batch.
        settings: `samples`, `batch_size`, `holdout`, `ignore`, `storage` and `folder` count.
    """
    settings = settings or SparsifySettings()
    program = program.clone().eval()
    run = _Run(program, find_variables(program, settings.ignore), loader, loss, settings, METHODS["chita-bso"], None)
    return run.gradients(0, 1)


def _settled(settings: SparsifySettings) -> SparsifySettings:
    """What is left open, by method."""
    refit = settings.refit or ("layers" if METHODS[settings.method].refits else "none")
    batch_norm = settings.batch_norm or ("kept" if refit == "layers" else "end")
    return settings.model_copy(update={"refit": refit, "batch_norm": batch_norm})


class _Run:
    """The stages of one method, in order."""

    def __init__(
        self,
        program: Program,
        variables: Variables,
        loader: Loader | None,
        loss: LossFn,
        settings: SparsifySettings,
        method: MethodInfo,
        progress: Progress | None,
    ) -> None:
        self.program, self.variables, self.loss = program, variables, loss
        self.loader, self.settings, self.method, self.progress = loader, settings, method, progress
        self.device = device_of(program.module())
        self.facts: dict[str, Any] = {}
        self.journal: list[dict[str, Any]] = []
        self.tuned: tuple[float, float] | None = None
        self.given: DataMatrix | None = None
        self.offset: Tensor | None = None
        self.dense = program.clone() if settings.model == "outputs" or settings.refit == "layers" else program
        if method.needs_data:
            assert loader is not None
            self.stream = Stream(loader, program, self.device)
            self.kept_back = self.stream.take(settings.holdout)

    def stage(self, number: int, total: int, constraint: Constraint, target: float) -> None:
        """Makes the network sparser by one step."""
        begun = time.perf_counter()
        center = self.variables.read(self.program)
        entry: dict[str, Any] = {"stage": number + 1, "sparsity": target}
        if self.method.needs_data:
            matrix = self.gradients(number, total)
            entry["gradient_seconds"] = round(time.perf_counter() - begun, 3)
            w = self.solve(matrix, center, constraint, entry)
        else:
            w = magnitude.prune(center, constraint)
        self.variables.write(self.program, w)
        if self.settings.refit == "layers":
            self.refit()
        if self.settings.batch_norm == "stages" and number + 1 < total:
            assert self.loader is not None
            self.program = _reestimate(self.program, self.loader)
        entry |= {"zeros": int((w == 0).sum()), "seconds": round(time.perf_counter() - begun, 3)}
        self.journal.append(entry)
        if self.progress:
            self.progress(number + 1, total, **{**entry, "stage": "stages"})

    def refit(self) -> None:
        """The weights that remain, fitted to what the layers of the dense network compute."""
        assert self.loader is not None
        tensors = self.variables.tensors(self.program)
        every = self.program.module().named_parameters()
        free = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in every}
        free |= {name: tensor != 0 for name, tensor in tensors.items()}
        samples = self.settings.refit_samples
        found = reconstruct(self.dense, self.program, {}, self.loader, samples=samples, free=free)
        self.program = replace(found, history=self.program.history)

    def gradients(self, number: int, total: int) -> DataMatrix:
        """The data matrix at the present weights."""
        if self.given is not None:
            return self.given
        settings = self.settings
        batches = self.stream.take(settings.samples * settings.batch_size)
        if settings.model == "outputs":
            seed = settings.seed + number
            rows, self.offset = output_rows(
                self.program, self.dense, batches, self.variables, settings.batch_size, seed
            )
        else:
            rows = Rows(self.program, batches, self.loss, self.variables, settings.batch_size)
        storage, why = settings.storage, ""
        if storage == "auto":
            storage, why = choose_storage(rows.count, self.variables.size, self.device)
        if number == 0:
            self.facts |= {"samples": rows.count * rows.batch_size, "rows": rows.count, "storage": storage}
            if rows.count < settings.samples:
                _log.warning("the loader gives %d rows, %d were asked for", rows.count, settings.samples)
            if why and storage != "float32":
                self.facts["storage_reason"] = why
                _log.warning("the gradients are held as %s: %s", storage, why)
        if storage == "matrix-free":
            return MatrixFree(rows)

        memory = human((4 if storage == "float32" else 2) * rows.count * self.variables.size)

        def progress(done: int, count: int, **info: object) -> None:
            if self.progress:
                self.progress(number * count + done, total * count, **info, memory=memory)

        matrix = collect(rows, storage, folder=Path(settings.folder) if settings.folder else None, progress=progress)
        self.facts["gradient_memory"] = human(matrix.bytes)
        if rows.one_by_one:
            self.facts["one_by_one"] = rows.one_by_one
        return matrix

    def solve(self, matrix: DataMatrix, center: Tensor, constraint: Constraint, entry: dict[str, Any]) -> Tensor:
        """The new weights."""
        settings = self.settings
        held_out = HeldOut(self.program, self.kept_back, self.loss, self.variables)
        asked = settings.first_order
        if self.offset is not None:
            asked = 0.0  # the offset holds what the gradient would say
        elif asked is None:
            asked = "auto" if self.method.uses_gradient else 0.0
        ridges = RIDGES if settings.ridge == "auto" else (float(settings.ridge),)
        given = 0.0 if asked == "auto" else float(asked)
        stage = Stage(
            Problem(matrix, center, ridges[0], given if self.offset is None else self.offset),
            constraint,
            self.variables,
            held_out,
            settings.seed,
            settings.block_size,
        )
        if len(ridges) > 1 or asked == "auto":
            tried = settings.solver == "bso" and settings.block_size is None  # what `tune` solves by
            rates = (RATES if tried else LOW_RATES) if asked == "auto" else (0.0,)
            found = tune(stage, ridges=ridges, rates=rates, near=self.tuned)
            self.tuned = (found.ridge, found.rate)
            offset = given + found.rate * found.ridge if self.offset is None else self.offset
            problem = replace(stage.problem, ridge=found.ridge, offset=offset)
            stage = replace(stage, problem=problem, path=found.path)
            entry["held_out_losses"] = found.losses
        entry |= {"ridge": stage.problem.ridge}
        if self.offset is None:
            entry["first_order"] = stage.problem.offset
        w = self.method.solve(stage, settings.solver)
        if not bool(torch.isfinite(w).all()):
            raise UserError(
                "the updated weights are not finite",
                where="sparsify",
                why="the system is singular in this precision",
                hint="a larger ridge: ridge=1e-3, or 'auto'",
            )
        if isinstance(matrix, StoredMatrix):
            entry["rows"] = matrix.rows
        return w


def _constraints(
    program: Program, variables: Variables, settings: SparsifySettings, method: MethodInfo
) -> tuple[list[Constraint], dict[str, Refused], list[float]]:
    """The patterns of all stages, tensors that stay dense for the pattern's sake, and the stages' sparsities."""
    asked = [name for name in ("pattern", "block", "macs") if getattr(settings, name) is not None]
    if len(asked) > 1 or (asked and settings.scope == "layer"):
        raise UserError(
            f"{' and '.join(asked)}{' in every layer' * (settings.scope == 'layer')}: one of them at a time",
            where="sparsify",
            hint="leave out all but one of pattern, block, macs and scope='layer'",
        )
    stages = settings.stages or method.stages
    if settings.stages and settings.stages > 1 and method.stages == 1 and settings.refit == "none":
        raise UserError(
            f"method {settings.method} has one stage",
            where="sparsify.stages",
            hint="take method='reconstruct' or 'chita++', whose weights change from stage to stage",
        )
    if settings.pattern is not None:
        # All stages are re-linearisations of the same pattern: N:M has no half-way.
        pattern, refused = NM.of(variables, *parse_pattern(settings.pattern))
        share = 1.0 - float(pattern.project(torch.ones(variables.size)).float().mean())
        return [pattern] * stages, refused, [share] * stages
    check_sparsity(settings.sparsity)
    if settings.macs is not None and not 0.0 < settings.macs < 1.0:
        raise UserError(
            f"macs must lie between 0 and 1, not {settings.macs:g}",
            where="sparsify.macs",
            hint="0.4 keeps 40 % of the multiply-adds",
        )
    steps = sparsities(stages, settings.sparsity, schedule=settings.schedule or method.schedule, start=settings.start)
    found: list[Constraint] = []
    for step in steps:
        if settings.macs is not None:
            # Both budgets shrink in step.
            share = math.exp(math.log(settings.macs) * step / settings.sparsity)
            found.append(WeightsAndMacs.of(program, variables, step, share))
        elif settings.block is not None:
            found.append(Blocks.of(variables, step, settings.block))
        elif settings.scope == "layer":
            found.append(PerLayer.of(variables, step))
        else:
            found.append(TopK.of(variables, step))
    return found, {}, list(steps)


def _reestimate(program: Program, loader: Loader) -> Program:
    found = reestimate_batch_norm(program, loader)
    return replace(found, history=program.history).eval()
