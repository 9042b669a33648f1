"""Quantisation: from a healed float program to one on the integer grids of a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UnsupportedError, UserError
from ..passes.fold import batch_norm_to_conv, fold_batch_norm, remove_dropout
from ..passes.passbase import FunctionPass, run_passes
from ..passes.program import Program
from ..passes.quant.grid import QuantScheme
from ..passes.quant.insert import insert_fake_quant
from ..passes.quant.modules import FakeQuantize
from ..passes.quant.placement import QuantJournal, place
from .calibrate import calibrate
from .data import Loader, LossFn, MetricFn
from .heal.evaluate import cross_entropy, evaluate, top1
from .heal.settings import TrainSettings
from .heal.train import fit

FOLDING = (
    FunctionPass("remove dropout", remove_dropout),
    FunctionPass("fold batch norm", fold_batch_norm),
    FunctionPass("batch norm to convolution", batch_norm_to_conv),
)
"""What happens to a program before it is quantised; each changes nothing where there is nothing to do."""


@dataclass(frozen=True)
class QuantResult:
    """What quantisation gave.

    Attributes:
        program: Fake-quantised program, in eval mode: what the exported file computes.
        calibrated: The same before it was trained.
        history: One entry per epoch; see `FitResult`. The first is the calibrated program, with `metric_float`
            beside `metric` where there is validation data.
        journal: What stays float, by node, and why.
        chosen: Which weights were taken and why.
    """

    program: Program
    calibrated: Program
    history: tuple[dict[str, Any], ...]
    journal: QuantJournal
    chosen: str


def prepare(program: Program, scheme: QuantScheme) -> tuple[Program, QuantJournal]:
    """Folds batch norm, drops dropout and inserts fake quantisation; the result is not calibrated yet.

    Returns:
        The program, and what of it stays float and why.

    Raises:
        UnsupportedError: Nothing in the program can be quantised.
    """
    if any(isinstance(module, FakeQuantize) for module in program.module().modules()):
        raise UserError(
            "the program is quantised already",
            where="quantize",
            hint="quantise the float program that it was made from",
        )
    folded = run_passes(FOLDING, program, allow_unmodified=True).program
    placement = place(folded, scheme)
    if not placement.layers:
        reasons = sorted({str(refused.reason) for _, refused in placement.journal})
        raise UnsupportedError(
            "no layer of the program can be quantised",
            where="quantize",
            why="; ".join(reasons) or "it has neither convolutions nor linear layers",
            hint="export it as float",
        )
    return insert_fake_quant(folded, scheme), placement.journal


def quantize(
    program: Program,
    loader: Loader,
    *,
    scheme: QuantScheme,
    samples: int = 1024,
    observer: str = "mse",
    qat: TrainSettings | None = None,
    tolerance: float | None = None,
    train: Loader | None = None,
    loss: LossFn = cross_entropy,
    teacher: Program | None = None,
    validation: Loader | None = None,
    metric: MetricFn = top1,
    state_dir: Path | None = None,
    progress: Callable[..., None] | None = None,
) -> QuantResult:
    """Puts a program on the integer grids of a scheme.

    Activation ranges come from calibration and stay fixed; training moves weights and biases, and weight scales
    follow the weights.

    Args:
        program: Float program; stays as it is.
        loader: Calibration batches.
        scheme: Grids and placement of the target.
        samples: Calibration samples.
        observer: How ranges are chosen: `mse`, `minmax` or `percentile`.
        qat: Trains on the grid with these settings; None only calibrates.
        tolerance: Trains only if calibration alone loses more than this on the validation data, in points
            (hundredths of the metric); None always trains.
        train: Training batches; the calibration batches if None.
        loss: Of the training.
        teacher: Network to distil from; the float program itself if None.
        validation: Chooses the best epoch.
        metric: One score per sample.
        state_dir: Where the state of the training is kept.
        progress: `progress(done, total, **info)` of the training.

    Raises:
        UserError: See `calibrate` and `fit`; or a tolerance without validation data.
        UnsupportedError: Nothing in the program can be quantised.
    """
    if tolerance is not None and validation is None:
        raise UserError(
            "a tolerance needs validation data",
            where="quantize.tolerance",
            hint="give a validation loader, or leave the tolerance out (when: always or never)",
        )
    prepared, journal = prepare(program, scheme)
    calibrated = calibrate(prepared, loader, samples=samples, observer=observer)
    entry: dict[str, Any] = {"epoch": 0, "step": 0}
    if validation is not None:
        before, after = (evaluate(p, validation, metric).metric for p in (program, calibrated))
        entry |= {"metric": after, "metric_float": before}
        if tolerance is not None and 100.0 * (before - after) <= tolerance:
            chosen = f"calibrated: {100.0 * (before - after):.2f} points lost, {tolerance:g} accepted"
            return QuantResult(calibrated, calibrated, ({**entry, "chosen": True},), journal, chosen)
    if qat is None:
        return QuantResult(calibrated, calibrated, ({**entry, "chosen": True},), journal, "calibrated")
    result = fit(
        calibrated,
        loader if train is None else train,
        loss,
        qat,
        teacher=program if teacher is None else teacher,
        validation=validation,
        metric=metric,
        state_dir=state_dir,
        progress=progress,
    )
    first, *rest = result.history
    return QuantResult(result.program, calibrated, ({**entry, **first}, *rest), journal, result.chosen)
