"""Healing: what is left of a pruned network is fitted to its data again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...passes.program import Program
from ..data import Loader, LossFn, MetricFn
from .bn import reestimate_batch_norm
from .evaluate import cross_entropy, evaluate, top1
from .settings import TrainSettings
from .train import ProgressFn, fit


@dataclass(frozen=True)
class HealResult:
    """What healing gave.

    Attributes:
        program: The healed network, in eval mode.
        start: The network before training, with its batch-norm statistics re-estimated if that helped.
        history: One entry per epoch; see `FitResult`. The first says what the re-estimation did.
        chosen: Which weights were taken and why.
        resumed: Epoch from which an earlier, killed run was continued.
    """

    program: Program
    start: Program
    history: tuple[dict[str, Any], ...]
    chosen: str
    resumed: int = 0


def heal(
    program: Program,
    train: Loader,
    loss: LossFn = cross_entropy,
    *,
    teacher: Program | None = None,
    settings: TrainSettings | None = None,
    validation: Loader | None = None,
    metric: MetricFn = top1,
    samples: int = 4096,
    state_dir: Path | None = None,
    progress: ProgressFn | None = None,
) -> HealResult:
    """Re-estimates batch-norm statistics, then fine-tunes, with distillation if there is a teacher.

    Args:
        program: Stays as it is.
        train: Training batches.
        loss: Mean loss of a batch.
        teacher: Network to distil from, usually the dense one.
        settings: Of the training.
        validation: Decides whether the re-estimated statistics are kept, and chooses the best epoch.
        metric: One score per sample.
        samples: For the batch-norm statistics.
        state_dir: Where the state is kept, so that a killed run can go on.
        progress: Told after every step.

    Raises:
        UserError: See `fit`.
    """
    settings = settings or TrainSettings()
    start, facts = _reestimate(program, train, validation, metric, samples)
    result = fit(
        start,
        train,
        loss,
        settings,
        teacher=teacher,
        validation=validation,
        metric=metric,
        state_dir=state_dir,
        progress=progress,
    )
    first, *rest = result.history
    return HealResult(result.program, start.eval(), ({**first, **facts}, *rest), result.chosen, result.resumed)


def _reestimate(
    program: Program, train: Loader, validation: Loader | None, metric: MetricFn, samples: int
) -> tuple[Program, dict[str, Any]]:
    """The program to start from, and what the history says about it."""
    fresh = reestimate_batch_norm(program, train, samples=samples)
    if validation is None:
        return fresh, {"batch_norm": "re-estimated"}
    before, after = (evaluate(p, validation, metric).metric for p in (program, fresh))
    kept = after >= before
    facts = {"metric_before": before, "metric_reestimated": after}
    return (fresh, {"batch_norm": "re-estimated", **facts}) if kept else (program, {"batch_norm": "kept", **facts})
