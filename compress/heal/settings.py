"""Settings of a training, for healing and quantisation-aware training alike, and its learning rate."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TrainSettings(BaseModel):
    """Settings of one training, for healing and for quantisation-aware training alike.

    Attributes:
        epochs: Passes over the training data; fractions are allowed, 0 trains nothing.
        max_steps: Stops earlier, after this many steps.
        optimizer: `sgd` (momentum) or `adamw`.
        lr: Highest learning rate.
        momentum: Of SGD.
        nesterov: Of SGD.
        weight_decay: On weights; never on biases and normalisation.
        schedule: Course of the learning rate after the warm-up.
        warmup_epochs: Epochs of linear rise from 0 to `lr`.
        milestones: Shares of the training at which schedule `step` multiplies the rate by `gamma`.
        gamma: Factor of schedule `step`.
        distill_weight: Share of the distillation loss where there is a teacher: 0 is the user's loss alone.
        temperature: Of distillation.
        clip_grad: Largest norm of the whole gradient; None does not clip.
        precision: `bf16` runs forward and backward under autocast; `auto` does where the device has BF16 arithmetic.
        keep_zeros: Weights that are zero stay zero; None: if the network was sparsified.
        channels_last: Keeps images and convolution weights in NHWC order.
        seed: Of shuffling, augmentation and dropout.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: float = Field(default=10.0, ge=0.0)
    max_steps: int | None = Field(default=None, ge=0)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(default=0.02, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    nesterov: bool = True
    weight_decay: float = Field(default=5e-4, ge=0.0)
    schedule: Literal["cosine", "linear", "constant", "step"] = "cosine"
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = Field(default=0.1, gt=0.0)
    distill_weight: float = Field(default=0.7, ge=0.0, le=1.0)
    temperature: float = Field(default=4.0, gt=0.0)
    clip_grad: float | None = Field(default=None, gt=0.0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    keep_zeros: bool | None = None
    channels_last: bool = True
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _everything_is_used(self) -> Self:
        if self.schedule != "step":
            self._idle(("milestones", "gamma"), f"schedule {self.schedule}", "take schedule: step")
        if self.optimizer != "sgd":
            self._idle(("momentum", "nesterov"), f"optimizer {self.optimizer}", "take optimizer: sgd")
        return self

    def _idle(self, names: tuple[str, ...], reader: str, remedy: str) -> None:
        """Refuses settings that are not read, unless they are what they are by themselves."""
        changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if changed:
            without = f"leave {'it' if len(changed) == 1 else 'them'} out"
            raise ValueError(f"{', '.join(changed)}: not read by {reader}; {without}, or {remedy}")

    def steps(self, steps_per_epoch: int) -> int:
        """Number of optimiser steps."""
        total = math.ceil(self.epochs * steps_per_epoch)
        return total if self.max_steps is None else min(total, self.max_steps)


class HealSettings(TrainSettings):
    """Settings of healing: those of a training, and of the repairs before it.

    Attributes:
        method: `train` fine-tunes. `ridge` trains nothing: the remaining weights are refitted in closed form, in
            seconds. `both` fine-tunes from there; it starts far better, and takes a lower rate than `train`.
        reconstruct_samples: Samples from which `ridge` and `both` refit.
        ridge: Pull towards the old weights, relative to the data's.
    """

    method: Literal["train", "ridge", "both"] = "train"
    reconstruct_samples: int = Field(default=1024, ge=1)
    ridge: float = Field(default=1e-3, gt=0.0)

    @model_validator(mode="after")
    def _repairs_are_used(self) -> Self:
        if self.method == "train":
            self._idle(("reconstruct_samples", "ridge"), "method train", "take method: ridge or both")
        return self

    def training(self) -> HealSettings:
        """What is left to train: nothing for method `ridge`."""
        return self.model_copy(update={"epochs": 0.0}) if self.method == "ridge" else self


def learning_rate(settings: TrainSettings, step: int, total: int, steps_per_epoch: int) -> float:
    """Learning rate of a step.

    Args:
        settings: What is asked for.
        step: Steps done before this one.
        total: Steps of the whole training.
        steps_per_epoch: Batches in the training data.
    """
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    share = (step - warmup) / max(total - warmup, 1)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1.0 + math.cos(math.pi * share))
    if settings.schedule == "linear":
        return settings.lr * (1.0 - share)
    if settings.schedule == "step":
        return settings.lr * settings.gamma ** sum(share >= milestone for milestone in settings.milestones)
    return settings.lr
