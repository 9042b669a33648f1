"""Healing: what is left of a pruned network is fitted to its data again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...passes.implant_form import Implants
from ...passes.labels.selection import Keep
from ...passes.program import Program
from ..data import Loader, LossFn, MetricFn
from .evaluate import cross_entropy, top1
from .masks import zero_masks
from .settings import HealSettings
from .start import candidates, choose
from .train import ProgressFn, fit


@dataclass(frozen=True)
class HealResult:
    """What healing gave.

    Attributes:
        program: The healed network, in eval mode.
        starts: The networks that training could have started from, by what was done to them.
        start: Name of the one it did start from.
        history: One entry per epoch; see `FitResult`. The first names the start.
        chosen: Which weights were taken and why.
        resumed: Epoch from which an earlier, killed run was continued.
    """

    program: Program
    starts: Mapping[str, Program]
    start: str
    history: tuple[dict[str, Any], ...]
    chosen: str
    resumed: int = 0


def heal(
    program: Program,
    train: Loader,
    loss: LossFn = cross_entropy,
    *,
    teacher: Program | None = None,
    keep: Keep | None = None,
    implants: Implants | None = None,
    settings: HealSettings | None = None,
    validation: Loader | None = None,
    metric: MetricFn = top1,
    samples: int = 4096,
    state_dir: Path | None = None,
    progress: ProgressFn | None = None,
) -> HealResult:
    """Repairs a pruned network without training, then fine-tunes it, with distillation if there is a teacher.

    The repairs are the re-estimation of batch-norm statistics and, by `settings.method`, the reconstruction of layers
    from the dense network (`ridge.reconstruct`); training starts from the best of what they give, together or alone.

    Args:
        program: Stays as it is.
        train: Training batches.
        loss: Mean loss of a batch.
        teacher: Network to distil from: the dense one.
        keep: Kept units by group name, by which `program` was made from `teacher`; what reconstruction needs. None is
            right for a network that only lost weights to zeros.
        implants: What stands in for which units, if `program` has implants.
        settings: Of the repairs and the training.
        validation: Chooses the start and the best epoch.
        metric: One score per sample.
        samples: For the batch-norm statistics, and for the choice of the start where there is no validation data.
        state_dir: Where the state is kept, so that a killed run can go on.
        progress: Told after every step.

    Raises:
        UserError: See `fit`; or the method needs a teacher and a plan.
    """
    settings = settings or HealSettings()
    masks = zero_masks(program, settings.training())
    if keep is None and masks and "apply" not in program.history:
        keep = {}  # zeros were made, no channel went
    if settings.method != "train" and (teacher is None or keep is None):
        raise UserError(
            f"healing by method {settings.method} needs the dense network and the plan",
            where="heal",
            why="the remaining weights are refitted to what the dense layers compute",
            hint="pass teacher=program and plan=plan, or take method='train'",
        )
    found = candidates(
        program,
        train,
        samples=samples,
        dense=teacher,
        keep=keep,
        implants=implants,
        reconstruct_samples=settings.reconstruct_samples if settings.method != "train" else 0,
        ridge=settings.ridge,
        free=masks,
    )
    best, *others = choose(found, train, loss, validation=validation, metric=metric, samples=samples)
    result = fit(
        best.program,
        train,
        loss,
        settings.training(),
        teacher=teacher,
        validation=validation,
        metric=metric,
        state_dir=state_dir,
        progress=progress,
    )
    first, *rest = result.history
    metrics = {start.name: start.metric for start in (best, *others) if start.metric is not None}
    history = ({**first, "start": best.name, **({"metrics": metrics} if metrics else {})}, *rest)
    return HealResult(result.program, found, best.name, history, result.chosen, result.resumed)
