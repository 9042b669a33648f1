"""What dropping a whole residual block does to the loss: measured, for that takes one pass a block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...passes.blocks import Block, residual_blocks, silence_blocks
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, LossFn
from ..heal.device import device_of
from ..sensitivity.batches import Batch, batch_loss, read_batches


@dataclass(frozen=True)
class BlockOffer:
    """A block that a planner may drop.

    Attributes:
        block: The block.
        delta_loss: Rise of the mean loss without its branch, everything else as it is.
        std_error: Its standard error, from the differences of the batches; 0 if there is one batch.
    """

    block: Block
    delta_loss: float
    std_error: float


def measure_blocks(
    program: Program,
    loader: Loader,
    loss: LossFn,
    *,
    samples: int = 512,
    progress: Callable[..., Any] | None = None,
) -> tuple[BlockOffer, ...]:
    """The blocks of a program, with the rise of the loss if each is dropped alone.

    Args:
        program: The dense program.
        loader: Batches.
        loss: Mean loss of a batch.
        samples: How many samples are read at most.
        progress: Told `progress(done, total)` after every block.
    """
    blocks = residual_blocks(program)
    if not blocks:
        return ()
    batches = read_batches(loader, samples, program, device_of(program.module()))
    sizes = np.array([batch.size for batch in batches], dtype=np.float64)
    dense, found = _losses(program, batches, loss), []
    for done, block in enumerate(blocks, start=1):
        without = program.clone()
        silence_blocks(without, [block.name])
        rises = _losses(without, batches, loss) - dense
        mean = float(np.average(rises, weights=sizes))
        spread = float(np.average((rises - mean) ** 2, weights=sizes))
        error = (spread / (len(rises) - 1)) ** 0.5 if len(rises) > 1 else 0.0
        found.append(BlockOffer(block, mean, error))
        if progress:
            progress(done, len(blocks))
    return tuple(found)


def _losses(program: Program, batches: Sequence[Batch], loss: LossFn) -> np.ndarray:
    with eval_mode(program.module()), torch.no_grad():
        return np.array([float(batch_loss(program, loss, batch)) for batch in batches])
