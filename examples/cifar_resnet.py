"""Residual networks for 32x32 images (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2).

A network of depth 6n+2 is a 3x3 stem, three stages of n basic blocks (two 3x3 convolutions each) with widths
w, 2w and 4w at sizes 32, 16 and 8, global average pooling and one linear layer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialise import he_normal

Shortcut = Literal["A", "B"]
"""What a block that halves the size does on its skip path: A pads channels with zeros, B is a 1x1 convolution."""

Head = Literal["linear", "fc"]
"""Attribute name of the last layer; published checkpoints differ in it."""


class PadAndSlice(nn.Module):
    """Option A: every second pixel, and zeros for the channels that are new, half of them before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        extra = out_channels - in_channels
        self.before, self.after, self.stride = extra // 2, extra - extra // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in, h, w] to [batch, out, h / stride, w / stride]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Option B: a strided 1x1 convolution with its own batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection; ReLU after the addition."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            make = PadAndSlice if shortcut == "A" else projection
            self.downsample = make(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in, h, w] to [batch, out, h / stride, w / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x))


class CifarResNet(nn.Module):
    """A residual network of depth 6n+2.

    Args:
        depth: Number of weighted layers on the longest path: 20, 32, 44, 56, 110, ...
        shortcut: Skip path of the blocks that change the shape.
        num_classes: Outputs of the last layer.
        head: Attribute name of the last layer.
        width: Channels of the first stage.

    Raises:
        ValueError: The depth is not 6n+2, or the shortcut is neither A nor B.
    """

    def __init__(
        self, depth: int, *, shortcut: Shortcut = "A", num_classes: int = 10, head: Head = "linear", width: int = 16
    ) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth must be 6n+2 (20, 32, 44, 56, 110, ...), not {depth}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be A or B, not {shortcut!r}")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, 1, shortcut)
        self.layer2 = _stage(width, 2 * width, blocks, 2, shortcut)
        self.layer3 = _stage(2 * width, 4 * width, blocks, 2, shortcut)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head_name = head
        self.add_module(head, nn.Linear(4 * width, num_classes))
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [batch, 3, h, w] to logits [batch, num_classes]."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return getattr(self, self.head_name)(torch.flatten(self.pool(out), 1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, shortcut: Shortcut) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1, shortcut) for _ in range(blocks - 1)))


def resnet20(*, shortcut: Shortcut = "A", num_classes: int = 10, head: Head = "linear", width: int = 16) -> CifarResNet:
    """ResNet-20: 0.27 million parameters, 41 million multiply-adds."""
    return CifarResNet(20, shortcut=shortcut, num_classes=num_classes, head=head, width=width)


def resnet32(*, shortcut: Shortcut = "A", num_classes: int = 10, head: Head = "linear", width: int = 16) -> CifarResNet:
    """ResNet-32: 0.46 million parameters, 69 million multiply-adds."""
    return CifarResNet(32, shortcut=shortcut, num_classes=num_classes, head=head, width=width)


def resnet44(*, shortcut: Shortcut = "A", num_classes: int = 10, head: Head = "linear", width: int = 16) -> CifarResNet:
    """ResNet-44: 0.66 million parameters, 97 million multiply-adds."""
    return CifarResNet(44, shortcut=shortcut, num_classes=num_classes, head=head, width=width)


def resnet56(*, shortcut: Shortcut = "A", num_classes: int = 10, head: Head = "linear", width: int = 16) -> CifarResNet:
    """ResNet-56: 0.85 million parameters, 126 million multiply-adds."""
    return CifarResNet(56, shortcut=shortcut, num_classes=num_classes, head=head, width=width)


def resnet110(
    *, shortcut: Shortcut = "A", num_classes: int = 10, head: Head = "linear", width: int = 16
) -> CifarResNet:
    """ResNet-110: 1.73 million parameters, 253 million multiply-adds."""
    return CifarResNet(110, shortcut=shortcut, num_classes=num_classes, head=head, width=width)
