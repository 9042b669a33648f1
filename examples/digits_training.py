"""How the demo's model is trained."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import digits
from .tensor_loader import TensorLoader


@dataclass(frozen=True)
class Training:
    """How the demo's model is trained: SGD under a one-cycle learning rate.

    Attributes:
        width: Channels of the first stage.
        epochs: Passes over the training images.
        lr: Highest learning rate.
        weight_decay: L2 penalty.
        seed: Of the initial weights; the data have the seed of the split.
    """

    width: int = 32
    epochs: int = 20
    lr: float = 0.1
    weight_decay: float = 5e-4
    seed: int = 0

    def cache_name(self) -> str:
        """A name that differs for other settings and for another torch, whose random numbers may differ."""
        text = json.dumps({**asdict(self), "torch": torch.__version__, "layout": 1}, sort_keys=True)
        return f"digits_resnet-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def train(model: nn.Module, settings: Training) -> dict[str, Tensor]:
    """Trains `model` in place, with a line a few epochs on stderr, and returns its weights."""
    data = digits.loaders()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=settings.lr, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * len(data.train)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=settings.lr, total_steps=steps)
    for epoch in range(settings.epochs):
        data.train.set_epoch(epoch)
        model.train()
        for images, labels in data.train:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        done = epoch + 1
        if done % 5 == 0 or done == settings.epochs:
            score = accuracy(model, data.validation)
            print(f"training the digits model: epoch {done}/{settings.epochs}, top-1 {score:.1f} %", file=sys.stderr)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def accuracy(model: nn.Module, loader: TensorLoader) -> float:
    """Top-1 in per cent, in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        hits = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in loader)
    return 100.0 * hits / len(loader.labels)
