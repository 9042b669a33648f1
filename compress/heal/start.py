"""Where healing starts: the pruned network as it is, or repaired without training, whichever serves best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ...passes.implant_form import Implants
from ...passes.labels.selection import Keep
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, LossFn, MetricFn, scalar_loss
from ..sensitivity.batches import Batch, read_batches
from .bn import reestimate_batch_norm
from .device import device_of
from .evaluate import evaluate
from .ridge import reconstruct

PRUNED = "pruned"
BATCH_NORM = "batch norm re-estimated"
RECONSTRUCTED = "reconstructed"
BOTH = "reconstructed, batch norm re-estimated"

_MOST_JUDGED = 1024
"""Training samples that are held to judge the candidates by."""


@dataclass(frozen=True)
class Start:
    """A network to start from.

    Attributes:
        name: What was done to it.
        program: The network.
        metric: Its score on the validation data; None without any.
    """

    name: str
    program: Program
    metric: float | None


def candidates(
    program: Program,
    train: Loader,
    *,
    samples: int,
    dense: Program | None = None,
    keep: Keep | None = None,
    implants: Implants | None = None,
    reconstruct_samples: int = 0,
    ridge: float = 1e-3,
    free: Mapping[str, Tensor] | None = None,
) -> Mapping[str, Program]:
    """The pruned network, and what repairs make of it.

    Args:
        program: The pruned network.
        train: Training batches.
        samples: For batch-norm statistics.
        dense: The network before pruning; without it and `keep` nothing is reconstructed.
        keep: Kept units by group name.
        implants: What stands in for which units.
        reconstruct_samples: Samples for the reconstruction; 0 leaves it out.
        ridge: Its strength.
        free: Where the weights of a sparse network may change, by name.
    """
    found = {PRUNED: program}
    if dense is not None and (keep or implants or free) and reconstruct_samples:
        found[RECONSTRUCTED] = reconstruct(
            dense, program, keep or {}, train, implants=implants, samples=reconstruct_samples, ridge=ridge, free=free
        )
    if any(isinstance(m, _BatchNorm) and m.running_mean is not None for m in program.module().modules()):
        for name, result in ((PRUNED, BATCH_NORM), (RECONSTRUCTED, BOTH)):
            if name in found:
                found[result] = reestimate_batch_norm(found[name], train, samples=samples)
    return found


def choose(
    found: Mapping[str, Program],
    train: Loader,
    loss: LossFn,
    *,
    validation: Loader | None,
    metric: MetricFn,
    samples: int,
) -> tuple[Start, ...]:
    """The candidates, best first: by the validation score, or by the loss on training data if there is none."""
    if validation is not None:
        scores = {name: evaluate(program, validation, metric).metric for name, program in found.items()}
        starts = [Start(name, program, scores[name]) for name, program in found.items()]
        return tuple(sorted(starts, key=lambda start: -scores[start.name]))
    # Read once: a loader that shuffles or augments would give every candidate other data.
    first = next(iter(found.values()))
    batches = read_batches(train, min(samples, _MOST_JUDGED), first, device_of(first.module()))
    losses = {name: _mean_loss(program, batches, loss) for name, program in found.items()}
    return tuple(Start(name, found[name], None) for name in sorted(losses, key=lambda name: losses[name]))


def _mean_loss(program: Program, batches: Sequence[Batch], loss: LossFn) -> float:
    """Mean loss per sample; infinite where it is not finite."""
    total = count = 0.0
    with eval_mode(program.module()), torch.inference_mode():
        for batch in batches:
            output = program.module()(*batch.args, **batch.kwargs)
            total += float(scalar_loss(loss, output, batch.target)) * batch.size
            count += batch.size
    return total / count if math.isfinite(total) else math.inf
