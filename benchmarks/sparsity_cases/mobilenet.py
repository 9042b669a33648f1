"""MobileNetV1 of half the width on CIFAR-10, trained here: the papers' network is one for ImageNet."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from secateur.examples.cifar_mobilenet import mobilenet_v1
from secateur.examples.tensor_loader import TensorLoader

WIDTH = 0.5
EPOCHS = 8
LR = 0.1
WEIGHT_DECAY = 5e-4


def trained(train: TensorLoader, path: Path, epochs: int = EPOCHS) -> nn.Module:
    """The network in evaluation mode, its weights from a file; trained if there is none yet.

    SGD with Nesterov momentum under a one-cycle learning rate, label smoothing 0.1.

    Args:
        train: Augmented training images.
        path: Where the weights are kept.
        epochs: Passes over them.
    """
    torch.manual_seed(0)
    model = mobilenet_v1(width=WIDTH)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    model = model.to(memory_format=torch.channels_last)  # a third faster on CPUs
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=epochs * len(train))
    for epoch in range(epochs):
        began, total = time.process_time(), 0.0
        train.set_epoch(epoch)
        for images, labels in train:
            images = images.to(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        said = f"epoch {epoch + 1}/{epochs}: loss {total / len(train):.3f}, {time.process_time() - began:.0f} s"
        print(said, file=sys.stderr, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)
    partial.replace(path)
    return model.to(memory_format=torch.contiguous_format).eval()
