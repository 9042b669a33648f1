"""Every unit removed for real on few samples, as a ranking: what a truth that costs no more than an estimator says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.passes.gates import insert_gates
from secateur.passes.program import Program

from .truth import FOLDS, Network, prunable


def removal(program: Program, images: Tensor, labels: Tensor, temperature: float | None) -> Sensitivity:
    """Scores: what the outputs lose when each unit is removed alone, batch norm with statistics of half of the images.

    Args:
        program: The trained network: one input, logits out.
        images: Samples, their number divisible by `FOLDS`.
        labels: int64 [samples].
        temperature: Of the divergence from the dense network's outputs that is the score; None: the rise of the loss.
    """
    network = Network(insert_gates(program), True, images.chunk(FOLDS), labels)
    groups = {}
    with torch.no_grad():
        dense = network.logits(network.prefix(None), None)
        for group in prunable(program):
            lost = [_lost(logits, dense, labels, temperature) for logits in _without(network, group.name)]
            groups[group.name] = Scores(np.array(lost), np.zeros(group.width))
    return Sensitivity("removal", "score" if temperature else "loss", groups)


def _without(network: Network, group: str) -> Iterator[Tensor]:
    """Logits without each unit of a group."""
    first, width = network.gated.groups[group]
    prefix = network.prefix(first)
    for unit in range(first, first + width):
        yield network.logits(prefix, unit)


def _lost(logits: Tensor, dense: Tensor, labels: Tensor, temperature: float | None) -> float:
    if temperature is None:
        losses = [F.cross_entropy(z.double(), labels) for z in (logits, dense)]
        return float(losses[0] - losses[1])
    softened = [F.log_softmax(z.double() / temperature, 1) for z in (logits, dense)]
    return temperature**2 * float(F.kl_div(*softened, reduction="batchmean", log_target=True))
