"""Evaluation of a network on a loader, and the default loss and metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import UserError
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import (
    Loader,
    LossFn,
    MetricFn,
    check_labels,
    empty_loader,
    first_line,
    run_batch,
    shapes_of,
    split_batch,
)
from .device import device_of, to_device


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metric: Mean score per sample.
        std_error: Standard error of that mean, from the spread of the scores.
        loss: Mean loss per sample; None if no loss was given.
        samples: Number of samples.
    """

    metric: float
    loss: float | None
    samples: int
    std_error: float


def evaluate(
    network: Program | Callable[..., Any], loader: Loader, metric: MetricFn, loss: LossFn | None = None
) -> Evaluation:
    """Mean metric (and loss) of a network in eval mode, in its own precision.

    Args:
        network: A program, a module, or any callable with the network's arguments.
        loader: Batches; see `compress.data`.
        metric: One score per sample.
        loss: Mean loss of a batch.

    Raises:
        UserError: The loader is empty, or the metric does not give one score per sample.
    """
    call = network.module() if isinstance(network, Program) else network
    module = call if isinstance(call, nn.Module) else None
    device = device_of(module) if module is not None else torch.device("cpu")
    scores = squares = losses = 0.0
    samples = 0
    with eval_mode(module) if module is not None else nullcontext(), torch.inference_mode():
        for number, batch in enumerate(loader):
            args, kwargs, target = to_device(split_batch(batch), device)
            output = run_batch(call, args, kwargs)
            with _located(loader, number):
                score = _score(metric, output, target, _lengths((args, kwargs)))
            samples += score.numel()
            scores += float(score.double().sum())
            squares += float(score.double().square().sum())
            if loss is not None:
                losses += float(loss(output, target)) * score.numel()
    if samples == 0:
        raise empty_loader(loader)
    mean = scores / samples
    spread = max(squares / samples - mean**2, 0.0)
    return Evaluation(mean, losses / samples if loss is not None else None, samples, (spread / samples) ** 0.5)


def cross_entropy(output: Any, target: Any) -> Tensor:
    """Mean cross entropy of logits [batch, classes, …] with class indices [batch, …].

    Raises:
        UserError: The output is no tensor of logits, or a label is not a class of the model.
    """
    _check_logits(output)
    check_labels(target, output.shape[1])
    return F.cross_entropy(output.float(), target)


def top1(output: Any, target: Any) -> Tensor:
    """1.0 where the largest logit is that of the label, else 0.0: [batch].

    Raises:
        UserError: The output is no tensor of logits, or a label is not a class of the model.
    """
    _check_logits(output)
    check_labels(target, output.shape[1])
    hits = (output.argmax(1) == target).float()
    return hits if hits.ndim == 1 else hits.flatten(1).mean(1)


@contextmanager
def _located(loader: Loader, number: int) -> Iterator[None]:
    """Adds to an error which batch of which loader it concerns."""
    try:
        yield
    except UserError as error:
        name = getattr(loader, "loader_name", "")
        place = f"batch {number} of the {name!r} loader" if name else f"batch {number} of the loader"
        where = f"{error.where}, {place}" if error.where else place
        raise UserError(error.what, where=where, why=error.why, hint=error.hint, code=error.code) from error.__cause__


def _score(metric: MetricFn, output: Any, target: Any, lengths: set[int]) -> Tensor:
    """The scores of a batch, checked."""
    try:
        score = metric(output, target)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            "the metric fails on the network's output",
            where="metric",
            why=first_line(error),
            hint=f"it is called as metric(output, target): output {shapes_of(output)}, target {shapes_of(target)}",
        ) from error
    _check_scores(score, lengths)
    if score.is_floating_point() and not torch.isfinite(score).all():
        raise UserError(
            "a score is not finite",
            where="metric",
            why="the metric, the network's output or the data hold NaN or infinity",
            hint="look at the outputs of the float model on this loader",
        )
    return score


def _check_logits(output: Any) -> None:
    if isinstance(output, Tensor) and output.ndim >= 2:
        return
    found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    raise UserError(
        "the default loss and metric need one tensor of logits [batch, classes]",
        where="loss, metric",
        why=f"the model returns {found}",
        hint="name your own: loss: package.module:function, metric: package.module:function",
    )


def _lengths(inputs: Any) -> set[int]:
    """Lengths of axis 0 of the inputs: one of them is the number of samples."""
    return {leaf.shape[0] for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim}


def _check_scores(score: Any, lengths: set[int]) -> None:
    if isinstance(score, Tensor) and score.ndim == 1 and (len(score) in lengths or not lengths):
        return
    found = f"shape {tuple(score.shape)}" if isinstance(score, Tensor) else type(score).__name__
    raise UserError(
        "the metric must return one score per sample, a tensor of shape [batch]",
        where="metric",
        why=f"it returned {found} for a batch of {' or '.join(map(str, sorted(lengths)))}",
        hint="leave out the mean over the batch; take the mean over whatever a sample consists of",
    )
