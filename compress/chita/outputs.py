"""Rows that hold the outputs instead of the loss: Gauss-Newton towards what the dense network computes.

A trained network's loss gradients are almost zero on most samples, so that their Fisher says little, and the loss model
has nowhere to return to once stages have moved the network away. Here row i is the gradient of z_iᵀ f(w; x_i), for a
random sign vector z_i over the outputs, and c_i = z_iᵀ (f(w; x_i) - f_dense(x_i)): then ‖A (w - w̄) + c‖² is an unbiased
estimate of the squared distance of the linearised outputs from those of the dense network (Hutchinson's trick on the
distillation loss). No labels are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import UnsupportedError
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import run_batch
from ..sensitivity.batches import Batch
from .gradients import Rows
from .variables import Variables


def output_rows(
    program: Program, dense: Program, batches: Sequence[Batch], variables: Variables, batch_size: int, seed: int
) -> tuple[Rows, Tensor]:
    """The rows, and c [n].

    Args:
        program: The network as it is now.
        dense: The network whose outputs are wanted.
        batches: Samples; their targets are not used.
        variables: Which weights.
        batch_size: Samples of a row; their mean is taken.
        seed: Of the signs.

    Raises:
        UnsupportedError: The output is not one tensor of floats with samples in axis 0.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn, offsets = [], []
    with eval_mode(program.graph_module), eval_mode(dense.graph_module), torch.no_grad():
        for batch in batches:
            found = run_batch(program.graph_module, batch.args, batch.kwargs)
            wanted = run_batch(dense.graph_module, batch.args, batch.kwargs)
            if not (isinstance(found, Tensor) and found.is_floating_point() and found.shape[:1] == (batch.size,)):
                raise UnsupportedError(
                    "only the loss can be modelled for this network",
                    where="sparsify.model",
                    why="its output is not one tensor of floats with samples in axis 0",
                    hint="take model='loss'",
                )
            signs = torch.randint(0, 2, found.shape, generator=generator).to(found.device) * 2.0 - 1.0
            signs *= (batch.size / found.numel()) ** 0.5  # z zᵀ has the mean I / outputs
            drawn.append(Batch(batch.args, batch.kwargs, signs.to(found.dtype), batch.size))
            along = (signs * (found - wanted)).flatten(1).sum(1).float()
            offsets.append(along)
    rows = Rows(program, drawn, _along, variables, batch_size)
    groups = [c[: c.numel() // rows.batch_size * rows.batch_size].view(-1, rows.batch_size).mean(1) for c in offsets]
    return rows, torch.cat(groups)


def _along(output: Any, signs: Tensor) -> Tensor:
    """Mean over samples of zᵀ f."""
    return (output * signs).flatten(1).sum(1).mean()
