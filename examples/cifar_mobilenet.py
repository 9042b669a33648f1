"""MobileNets for 32x32 images: the published networks with fewer strides.

V1: Howard et al. 2017, "MobileNets", table 1. V2: Sandler et al. 2018, "MobileNetV2", table 2. The ImageNet networks
shrink the image 32 times. Here the stem keeps its size, and in V2 the first strided stage too, so that 32x32 ends at
2x2 (V1) or 4x4 (V2).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .initialise import he_normal

V1_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""(output channels, stride) of every depthwise-separable block of MobileNetV1."""

V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""(expansion, output channels, blocks, stride of the first block) of every stage of MobileNetV2."""


def scaled(channels: int, multiplier: float) -> int:
    """Channels times the width multiplier, rounded to a multiple of 8 and never more than 10 % below."""
    value = channels * multiplier
    rounded = max(8, int(value + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * value else rounded


def conv_bn(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: nn.Module | None
) -> nn.Sequential:
    """Convolution, batch normalisation and, unless it is None, an activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return nn.Sequential(*layers, *([] if activation is None else [activation]))


class InvertedResidual(nn.Module):
    """Expansion 1x1, depthwise 3x3, linear projection 1x1; a skip connection where the shape stays."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.skip = stride == 1 and in_channels == out_channels
        layers = [] if expansion == 1 else [conv_bn(in_channels, hidden, 1, activation=nn.ReLU6())]
        self.layers = nn.Sequential(
            *layers,
            conv_bn(hidden, hidden, 3, stride=stride, groups=hidden, activation=nn.ReLU6()),
            conv_bn(hidden, out_channels, 1, activation=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, in, h, w] to [batch, out, h / stride, w / stride]."""
        return x + self.layers(x) if self.skip else self.layers(x)


class CifarMobileNet(nn.Module):
    """Feature layers, global average pooling, dropout and one linear layer."""

    def __init__(self, features: nn.Sequential, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [batch, 3, h, w] to logits [batch, num_classes]."""
        return self.classifier(self.dropout(torch.flatten(self.pool(self.features(x)), 1)))


def mobilenet_v1(*, width: float = 1.0, num_classes: int = 10, dropout: float = 0.0) -> CifarMobileNet:
    """MobileNetV1 with width multiplier `width`: 3.2 million parameters at 1.0."""
    channels = scaled(32, width)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, activation=nn.ReLU())]
    for out, stride in V1_STAGES:
        out = scaled(out, width)
        depthwise = conv_bn(channels, channels, 3, stride=stride, groups=channels, activation=nn.ReLU())
        layers.append(nn.Sequential(depthwise, conv_bn(channels, out, 1, activation=nn.ReLU())))
        channels = out
    return CifarMobileNet(nn.Sequential(*layers), channels, num_classes, dropout)


def mobilenet_v2(*, width: float = 1.0, num_classes: int = 10, dropout: float = 0.0) -> CifarMobileNet:
    """MobileNetV2 with width multiplier `width`: 2.2 million parameters at 1.0."""
    channels = scaled(32, width)
    layers: list[nn.Module] = [conv_bn(3, channels, 3, activation=nn.ReLU6())]
    for expansion, out, blocks, stride in V2_STAGES:
        out = scaled(out, width)
        for index in range(blocks):
            layers.append(InvertedResidual(channels, out, stride if index == 0 else 1, expansion))
            channels = out
    last = scaled(1280, max(1.0, width))
    layers.append(conv_bn(channels, last, 1, activation=nn.ReLU6()))
    return CifarMobileNet(nn.Sequential(*layers), last, num_classes, dropout)
