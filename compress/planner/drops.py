"""What dropping a whole residual block does to the loss: measured, for that takes one pass a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import UserError
from ...passes.blocks import Block, residual_blocks, silence_blocks
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, LossFn, run_batch, scalar_loss
from ..heal.device import device_of
from ..sensitivity.batches import Batch, batch_loss, read_batches
from ..sensitivity.table import Sensitivity


@dataclass(frozen=True)
class BlockOffer:
    """A block that a planner may drop.

    Attributes:
        block: The block.
        delta_loss: Rise of the mean loss without its branch, everything else as it is.
        std_error: Its standard error, from the differences of the batches; 0 if there is one batch.
        temperature: At which the loss was taken; see `measure_blocks`.
    """

    block: Block
    delta_loss: float
    std_error: float
    temperature: float = 1.0


def measure_blocks(
    program: Program,
    loader: Loader,
    loss: LossFn,
    *,
    samples: int = 512,
    temperature: float = 1.0,
    progress: Callable[..., Any] | None = None,
) -> tuple[BlockOffer, ...]:
    """The blocks of a program, with the rise of the loss if each is dropped alone.

    At a temperature T other than 1 the rise is measured as rankings at that temperature estimate it (`gate-ggn`), so
    that both can be added up: with z, z' the outputs before and after, T² (l(z'/T) - l(z/T)) - T ∇l(z/T) (z' - z). To
    second order in z' - z that is the quadratic form with the Hessian at z/T, without the first-order term. For a cross
    entropy it is T² times the Kullback-Leibler divergence of distillation, whatever the labels.

    Args:
        program: The dense program.
        loader: Batches.
        loss: Mean loss of a batch.
        samples: How many samples are read at most.
        temperature: 1 for the loss itself; that of the ranking (`temperature_of`) where it is another.
        progress: Told `progress(done, total)` after every block.
    """
    blocks = residual_blocks(program)
    if not blocks:
        return ()
    batches = read_batches(loader, samples, program, device_of(program.module()))
    sizes = np.array([batch.size for batch in batches], dtype=np.float64)
    with eval_mode(program.module()):
        before = [_Before.of(program, batch, loss, temperature) for batch in batches]
    found = []
    for done, block in enumerate(blocks, start=1):
        without = program.clone()
        silence_blocks(without, [block.name])
        with eval_mode(without.module()), torch.no_grad():
            rises = np.array([start.rise(without, loss, temperature) for start in before])
        mean = float(np.average(rises, weights=sizes))
        spread = float(np.average((rises - mean) ** 2, weights=sizes))
        error = (spread / (len(rises) - 1)) ** 0.5 if len(rises) > 1 else 0.0
        found.append(BlockOffer(block, mean, error, temperature))
        if progress:
            progress(done, len(blocks))
    return tuple(found)


def temperature_of(sensitivity: Sensitivity) -> float | None:
    """The temperature at which a ranking estimates rises of the loss; None if it estimates none."""
    if sensitivity.unit == "loss":
        return 1.0
    found = sensitivity.facts.get("temperature")
    return float(found) if isinstance(found, int | float) else None


def check_losses(sensitivity: Sensitivity, temperature: float | None = None) -> None:
    """Refuses a ranking that blocks cannot be weighed against.

    Args:
        sensitivity: The ranking.
        temperature: At which the loss without each block was measured; None if that is still to come.

    Raises:
        UserError: It estimates no rise of the loss, or that at another temperature.
    """
    ranked = temperature_of(sensitivity)
    if ranked is not None and temperature in (None, ranked):
        return
    said = "gives scores" if ranked is None else f"is of the loss at temperature {ranked:g}"
    raise UserError(
        "blocks can be dropped only if the ranking measures what was measured of them",
        where="plan.blocks",
        why=f"what a block costs is a rise of the loss{f' at temperature {temperature:g}' if temperature else ''}, "
        f"and this ranking {said}",
        hint="rank.method: gate-ggn, and in Python measure_blocks(…, temperature=temperature_of(table))",
    )


@dataclass(frozen=True)
class _Before:
    """The dense network on one batch.

    Attributes:
        batch: The batch.
        loss: Its loss, at the temperature.
        outputs: Floating-point outputs.
        slopes: Derivatives of the loss by the outputs over the temperature.
    """

    batch: Batch
    loss: float
    outputs: list[Tensor]
    slopes: list[Tensor]

    @staticmethod
    def of(program: Program, batch: Batch, loss: LossFn, temperature: float) -> _Before:
        if temperature == 1.0:
            with torch.no_grad():
                return _Before(batch, float(batch_loss(program, loss, batch)), [], [])
        with torch.no_grad():
            output = run_batch(program.graph_module, batch.args, batch.kwargs)
        scaled = _scaled(output, temperature, grad=True)
        with torch.enable_grad():
            value = scalar_loss(loss, scaled, batch.target)
            slopes = torch.autograd.grad(value, _floats(scaled), allow_unused=True)
        outputs = _floats(output)
        known = [torch.zeros_like(z) if g is None else g for z, g in zip(outputs, slopes, strict=True)]
        return _Before(batch, float(value.detach()), outputs, known)

    def rise(self, program: Program, loss: LossFn, temperature: float) -> float:
        if temperature == 1.0:
            return float(batch_loss(program, loss, self.batch)) - self.loss
        output = run_batch(program.graph_module, self.batch.args, self.batch.kwargs)
        value = float(scalar_loss(loss, _scaled(output, temperature), self.batch.target))
        moved = zip(_floats(output), self.outputs, self.slopes, strict=True)
        first = sum(float(((new - old).double() * slope).sum()) for new, old, slope in moved)
        return temperature**2 * (value - self.loss) - temperature * first


def _scaled(output: Any, temperature: float, *, grad: bool = False) -> Any:
    return pytree.tree_map(
        lambda z: (z / temperature).requires_grad_(grad) if isinstance(z, Tensor) and z.is_floating_point() else z,
        output,
    )


def _floats(output: Any) -> list[Tensor]:
    return [z for z in pytree.tree_leaves(output) if isinstance(z, Tensor) and z.is_floating_point()]
