"""The trainer: fine-tuning with distillation, for healing and for quantisation-aware training alike."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...errors import UserError
from ...passes.fold import fold_batch_norm
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, LossFn, MetricFn, empty_loader, run_batch, scalar_loss, split_batch
from .device import autocast, device_of, to_device, uses_bf16
from .distill import class_axes, distillation_loss
from .evaluate import Evaluation, evaluate, top1
from .masks import apply_masks, zero_masks
from .randomness import seeded
from .replicas import Replicas
from .settings import TrainSettings, learning_rate
from .state import Progress, fingerprint, load_state, restore, save_state, snapshot

ProgressFn = Callable[..., None]
"""`progress(done, total, **info)`: steps done and in all, with the loss, the learning rate and the seconds left."""


@dataclass(frozen=True)
class FitResult:
    """What a training gave.

    Attributes:
        program: The network with the chosen weights, in eval mode.
        history: One entry per epoch (epoch 0 is the start): `epoch`, `step`, `loss`, `lr`, `seconds`, and `metric`
            on the validation data; the chosen one has `chosen: True`. `distilled: False` if there was a teacher, but no
            output that is a distribution over classes.
        chosen: Which weights were taken and why.
        resumed: Epoch from which an earlier, killed run was continued; 0 for a new one.
    """

    program: Program
    history: tuple[dict[str, Any], ...]
    chosen: str
    resumed: int = 0


def fit(
    program: Program,
    train: Loader,
    loss: LossFn,
    settings: TrainSettings,
    *,
    teacher: Program | None = None,
    validation: Loader | None = None,
    metric: MetricFn = top1,
    state_dir: Path | None = None,
    progress: ProgressFn | None = None,
) -> FitResult:
    """Trains a program.

    With validation data the latest epoch is taken whose score is within one standard error of the best and not below
    that of the start: a schedule ends where it is meant to, and a small validation set cannot tell such scores apart.
    Without, it is the last. A loader with a method `set_epoch(epoch)` is told the epoch. Random numbers depend on seed
    and epoch only, so a run that was killed and started again with the same `state_dir` gives, bit for bit, what an
    uninterrupted one would have.

    Under `torchrun` every process calls this with the same arguments: each computes its part of every batch, all get
    the result, and the first writes the state and reports progress; see `Replicas`.

    Args:
        program: Stays as it is.
        train: Training batches.
        loss: Mean loss of a batch.
        settings: Optimiser, schedule, distillation, precision.
        teacher: Network to distil from.
        validation: Chooses the best epoch. Never the test data.
        metric: One score per sample.
        state_dir: Where the state is kept after every epoch; None keeps none.
        progress: Told after every step.

    Raises:
        UserError: The loss stops being finite, a loader is empty, or the teacher does not fit.
    """
    program = program.clone(step="fit")
    masks = zero_masks(program, settings)
    run = _Run(program.module(), train, loss, settings, teacher, validation, metric, state_dir, progress, masks)
    run.replicas.begin(run.module, program.static_batch)
    history, chosen, resumed = run.train()
    return FitResult(program.eval(), history, chosen, resumed)


class _Run:
    """One training of one module, in place."""

    def __init__(
        self,
        module: nn.Module,
        train: Loader,
        loss: LossFn,
        settings: TrainSettings,
        teacher: Program | None,
        validation: Loader | None,
        metric: MetricFn,
        state_dir: Path | None,
        progress: ProgressFn | None,
        masks: Mapping[str, Tensor],
    ) -> None:
        self.masks = masks
        self.module, self.loader, self.loss, self.settings = module, train, loss, settings
        # A teacher only infers, so it needs no batch norm.
        distilled = teacher is not None and settings.distill_weight > 0
        self.teacher = fold_batch_norm(teacher).module() if teacher is not None and distilled else None
        self.validation, self.metric, self.state_dir, self.progress = validation, metric, state_dir, progress
        self.replicas = Replicas()
        self.distilled = False
        self.device = device_of(module)
        self.bf16 = uses_bf16(settings.precision, self.device)
        self.steps_per_epoch = _length(train)
        self.total = settings.steps(self.steps_per_epoch)

    def train(self) -> tuple[tuple[dict[str, Any], ...], str, int]:
        """Trains; returns history, what was chosen, and the epoch it was continued from."""
        key = self.key() if self.state_dir else ""
        if self.settings.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = make_optimizer(self.module, self.settings)
        found = load_state(self.state_dir, key, self.module, optimizer) if self.state_dir else None
        at, best = found or self.start()
        self.replicas.agree(at.epoch)
        resumed = at.epoch
        with eval_mode(self.module):
            while at.step < self.total:
                self.epoch(at, optimizer)
                best = self.judge(at, best)
                if self.state_dir and self.replicas.first:
                    save_state(self.state_dir, key, at, self.module, optimizer, best)
        self.replicas.wait()
        restore(self.module, best)
        self.module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return self.report(at), self.chosen(at), resumed

    def key(self) -> str:
        """Hash of all that decides the result, as far as it can be known."""
        parts = (self.module, self.teacher, self.settings, self.steps_per_epoch, self.validation is None, self.bf16)
        return fingerprint(*parts)

    def start(self) -> tuple[Progress, dict[str, Tensor]]:
        """State before the first step."""
        at = Progress()
        entry: dict[str, Any] = {"epoch": 0, "step": 0}
        if self.validation is not None:
            found = self.score()
            at.best, at.slack = found.metric, found.std_error
            entry["metric"] = at.best
        at.history.append(entry)
        return at, snapshot(self.module)

    def score(self) -> Evaluation:
        """Metric on the validation data."""
        assert self.validation is not None
        found = evaluate(self.module, self.validation, self.metric)
        metric, std_error = self.replicas.from_first(found.metric, found.std_error)
        return replace(found, metric=metric, std_error=std_error)

    def epoch(self, at: Progress, optimizer: torch.optim.Optimizer) -> None:
        """One pass over the training data, or what is left to do of it."""
        begun, first = time.monotonic(), at.step
        summed, self.distilled = 0.0, False
        _set_modes(self.module, training=True)
        with seeded(self.settings.seed, at.epoch):
            for batch in self.batches(at.epoch, self.total - at.step):
                lr = learning_rate(self.settings, at.step, self.total, self.steps_per_epoch)
                value = self.step(batch, optimizer, lr, at.step)
                at.step += 1
                summed += value
                if self.progress and self.replicas.first:
                    eta = (time.monotonic() - begun) / (at.step - first) * (self.total - at.step)
                    self.progress(at.step, self.total, loss=value, lr=lr, eta=eta)
        _set_modes(self.module, training=False)
        if at.step == first:
            raise empty_loader(self.loader, "train")
        at.epoch += 1
        lr = learning_rate(self.settings, at.step - 1, self.total, self.steps_per_epoch)
        seconds = round(time.monotonic() - begun, 3)
        mean = summed / (at.step - first)
        without = {"distilled": False} if self.teacher is not None and not self.distilled else {}
        entry = {"epoch": at.epoch, "step": at.step, "loss": mean, "lr": lr, "seconds": seconds}
        at.history.append({**entry, **without})

    def batches(self, epoch: int, most: int) -> Iterator[Any]:
        """Batches of an epoch, at most so many."""
        set_epoch = getattr(self.loader, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        return itertools.islice(self.loader, min(most, self.steps_per_epoch))

    def step(self, batch: Any, optimizer: torch.optim.Optimizer, lr: float, number: int) -> float:
        """One optimiser step; returns the loss."""
        share = self.replicas.share(*split_batch(batch))
        args, kwargs = to_device(
            (share.args, dict(share.kwargs)), self.device, channels_last=self.settings.channels_last
        )
        target = to_device(share.target, self.device)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        with self.replicas.running(self.module, share, self.settings.seed, number):
            with autocast(self.device, self.bf16):
                output = run_batch(self.module, args, kwargs)
            value = share.weight * self.total_loss(_float(output), target, args, kwargs)
            value.backward()
        value = value.detach()
        self.replicas.sum([value])
        found = float(value)
        if not math.isfinite(found):
            raise UserError(
                f"the loss is {found} at step {number + 1} of {self.total}",
                where="training",
                why="the training diverged, or the data hold values that are not finite",
                hint=f"lower the learning rate (lr: {self.settings.lr / 10:g}), set clip_grad: 1.0, or precision: fp32",
            )
        self.replicas.sum_gradients(self.module.parameters())
        if self.settings.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.clip_grad)
        optimizer.step()
        apply_masks(self.module, self.masks)
        return found

    def total_loss(self, output: Any, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The user's loss, mixed with that of distillation."""
        weight = self.settings.distill_weight
        axes = class_axes(output, target) if self.teacher is not None else []
        if self.teacher is None or all(axis is None for axis in axes):
            return scalar_loss(self.loss, output, target)
        self.distilled = True
        with eval_mode(self.teacher), torch.inference_mode(), autocast(self.device, self.bf16):
            wanted = self.teacher(*args, **kwargs)
        distilled = distillation_loss(output, wanted, self.settings.temperature, axes)
        return (
            distilled if weight == 1.0 else (1.0 - weight) * scalar_loss(self.loss, output, target) + weight * distilled
        )

    def judge(self, at: Progress, best: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights to keep after an epoch."""
        if self.validation is not None:
            found = self.score()
            score = at.history[-1]["metric"] = found.metric
            top = score if at.best is None else at.best
            if score < max(top - at.slack, at.history[0]["metric"]):
                return best
            if score >= top:
                at.best, at.slack = score, found.std_error
        at.chosen = at.epoch
        return snapshot(self.module)

    def report(self, at: Progress) -> tuple[dict[str, Any], ...]:
        """The history with the chosen epoch marked."""
        marked = [dict(entry, chosen=True) if entry["epoch"] == at.chosen else entry for entry in at.history]
        return tuple(marked)

    def chosen(self, at: Progress) -> str:
        """Which epoch was taken and why; and that nothing was distilled, where that was asked for."""
        ungiven = any(entry.get("distilled") is False for entry in at.history)
        without = "; not distilled: no target holds the classes of an output" * ungiven
        if self.validation is None:
            return f"epoch {at.chosen}, the last: there is no validation data{without}"
        start = " (the start)" * (at.chosen == 0)
        latest = "the latest within a standard error of the best by validation"
        return f"epoch {at.chosen}{start} of {at.epoch}, {latest}{without}"


def make_optimizer(module: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimiser; weights decay, biases and normalisation (whatever has fewer than two axes) do not."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise UserError("the network has no parameters to train", where="training", hint="unfreeze some: requires_grad")
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.lr)
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


def _length(loader: Loader) -> int:
    """Number of batches; loaders without a length are read once."""
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError:
        length = sum(1 for _ in loader)
    if length == 0:
        raise empty_loader(loader, "train")
    return length


def _float(output: Any) -> Any:
    """BF16 outputs as float32, in which losses are computed."""
    return pytree.tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, output)


def _set_modes(module: nn.Module, *, training: bool) -> None:
    for child in module.modules():
        child.training = training
