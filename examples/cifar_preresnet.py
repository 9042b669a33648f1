"""Pre-activation residual networks for 32x32 images (He et al. 2016, "Identity Mappings in Deep Residual Networks").

Normalisation and ReLU come before each convolution, so the skip path is never rectified; one more normalisation and
ReLU precede the pooling. A block that changes the shape feeds its projection with the rectified input.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialise import he_normal

Block = Literal["basic", "bottleneck"]


class PreActBasic(nn.Module):
    """BN-ReLU-conv3x3, twice."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut = _projection(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in, h, w] to [batch, width, h / stride, w / stride]."""
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(F.relu(self.bn2(out))) + skip


class PreActBottleneck(nn.Module):
    """BN-ReLU-conv with kernels 1, 3 and 1; the last one has four times the width."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.shortcut = _projection(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in, h, w] to [batch, 4 * width, h / stride, w / stride]."""
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        return self.conv3(F.relu(self.bn3(out))) + skip


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


class CifarPreResNet(nn.Module):
    """A pre-activation network of depth 6n+2 (basic blocks) or 9n+2 (bottlenecks).

    Args:
        depth: Number of weighted layers on the longest path.
        block: Kind of block.
        num_classes: Outputs of the last layer.
        width: Channels of the stem, and inner channels of the first stage.

    Raises:
        ValueError: The depth does not suit the block.
    """

    def __init__(self, depth: int, *, block: Block = "basic", num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        make: type[PreActBasic] | type[PreActBottleneck] = PreActBasic if block == "basic" else PreActBottleneck
        layers = 6 if block == "basic" else 9
        blocks, rest = divmod(depth - 2, layers)
        if blocks < 1 or rest:
            raise ValueError(f"depth of a network of {block} blocks must be {layers}n+2, not {depth}")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        channels, stages = width, []
        for stage in range(3):
            inner = width * 2**stage
            row: list[nn.Module] = []
            for index in range(blocks):
                row.append(make(channels, inner, 2 if stage and not index else 1))
                channels = make.expansion * inner
            stages.append(nn.Sequential(*row))
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [batch, 3, h, w] to logits [batch, num_classes]."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        out = self.pool(F.relu(self.bn(out)))
        return self.fc(torch.flatten(out, 1))


def preresnet20(*, num_classes: int = 10, width: int = 16) -> CifarPreResNet:
    """PreResNet-20 of basic blocks."""
    return CifarPreResNet(20, num_classes=num_classes, width=width)


def preresnet29(*, num_classes: int = 10, width: int = 16) -> CifarPreResNet:
    """PreResNet-29 of bottlenecks."""
    return CifarPreResNet(29, block="bottleneck", num_classes=num_classes, width=width)


def preresnet56(*, num_classes: int = 10, width: int = 16) -> CifarPreResNet:
    """PreResNet-56 of basic blocks."""
    return CifarPreResNet(56, num_classes=num_classes, width=width)


def preresnet110(*, num_classes: int = 10, width: int = 16) -> CifarPreResNet:
    """PreResNet-110 of basic blocks."""
    return CifarPreResNet(110, num_classes=num_classes, width=width)


def preresnet164(*, num_classes: int = 10, width: int = 16) -> CifarPreResNet:
    """PreResNet-164 of bottlenecks."""
    return CifarPreResNet(164, block="bottleneck", num_classes=num_classes, width=width)
