"""Wide residual networks for 32x32 images (Zagoruyko and Komodakis 2016, "Wide Residual Networks", table 1).

WRN-d-k has depth d = 6n+4 and three stages of n pre-activation blocks with widths 16k, 32k and 64k.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialise import he_normal


class WideBlock(nn.Module):
    """BN-ReLU-conv3x3, dropout, BN-ReLU-conv3x3, and a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in, h, w] to [batch, out, h / stride, w / stride]."""
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.dropout(F.relu(self.bn2(self.conv1(out))))
        return self.conv2(out) + skip


class WideResNet(nn.Module):
    """WRN-d-k.

    Args:
        depth: d = 6n+4.
        widen: k, the factor on the widths 16, 32 and 64.
        dropout: Probability of dropping an activation inside a block.
        num_classes: Outputs of the last layer.

    Raises:
        ValueError: The depth is not 6n+4.
    """

    def __init__(self, depth: int, widen: int, *, dropout: float = 0.0, num_classes: int = 10) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth must be 6n+4 (10, 16, 22, 28, 40, ...), not {depth}")
        widths = (16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layer1 = _stage(16, widths[0], blocks, 1, dropout)
        self.layer2 = _stage(widths[0], widths[1], blocks, 2, dropout)
        self.layer3 = _stage(widths[1], widths[2], blocks, 2, dropout)
        self.bn = nn.BatchNorm2d(widths[2])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [batch, 3, h, w] to logits [batch, num_classes]."""
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        out = self.pool(F.relu(self.bn(out)))
        return self.fc(torch.flatten(out, 1))


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(in_channels, out_channels, stride, dropout)
    return nn.Sequential(first, *(WideBlock(out_channels, out_channels, 1, dropout) for _ in range(blocks - 1)))


def wide_resnet(*, depth: int = 28, widen: int = 10, dropout: float = 0.0, num_classes: int = 10) -> WideResNet:
    """WRN-d-k; by default WRN-28-10: 36.5 million parameters."""
    return WideResNet(depth, widen, dropout=dropout, num_classes=num_classes)
