"""Reads batches for an estimator and evaluates the loss on them, saying clearly what is wrong with either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import UserError
from ...passes.program import Program
from ..data import Loader, LossFn, empty_loader, run_batch, scalar_loss, split_batch


@dataclass(frozen=True)
class Batch:
    """Inputs and target on the device of the program.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        target: Whatever the loss takes.
        size: Number of samples.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any
    size: int


def read_batches(loader: Loader | None, samples: int, program: Program, device: torch.device) -> list[Batch]:
    """The first `samples` samples of a loader; the last batch is cut to fit unless the program's batch is static.

    Raises:
        UserError: There is no loader, it is empty, or a batch is not a pair.
    """
    if loader is None:
        raise UserError(
            "this ranking method needs data", where="rank", hint="give a loader, or take method='magnitude'"
        )
    batches: list[Batch] = []
    left = samples
    for raw in loader:
        batch = _batch(raw, left if program.static_batch is None else None, device)
        batches.append(batch)
        left -= batch.size
        if left <= 0:
            return batches
    if not batches:
        raise empty_loader(loader)
    return batches


def batch_loss(program: Program, loss: LossFn, batch: Batch) -> Tensor:
    """The loss of a batch, a finite scalar with a gradient graph if gradients are enabled.

    Raises:
        UserError: The network or the loss fails on the batch, labels are out of range, or the loss is no finite scalar.
    """
    output = run_batch(program.graph_module, batch.args, batch.kwargs)
    value = scalar_loss(loss, output, batch.target)
    if not bool(torch.isfinite(value)):
        raise UserError(
            f"the loss is {float(value.detach())}",
            where="loss",
            why="weights, inputs or targets hold extreme values, NaN or infinity",
            hint="evaluate the dense model on this data first",
        )
    return value


def _batch(raw: Any, limit: int | None, device: torch.device) -> Batch:
    args, kwargs, target = split_batch(raw)
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim]
    if not sizes or sizes[0] == 0:
        raise UserError(
            "a batch holds no samples",
            where="data factory",
            why="no input is a tensor with samples along axis 0",
            hint="yield (inputs, target) with the batch in axis 0",
        )
    size = sizes[0]
    keep = size if limit is None else min(size, limit)

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return (leaf[:keep] if leaf.ndim and leaf.shape[0] == size else leaf).to(device)

    args, kwargs, target = pytree.tree_map(place, (args, dict(kwargs), target))
    return Batch(args, kwargs, target, keep)
