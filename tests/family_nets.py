"""Miniatures of the convolutional families that have to prune; `FAMILY_NETS` maps a name to `(module, inputs)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU) -> nn.Module:
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), act())


class Residual(nn.Module):
    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Squeeze(nn.Module):
    """Squeeze and excitation by 1x1 convolutions or linear layers."""

    def __init__(self, width: int, linear: bool = False, gate: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        layer = nn.Linear if linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.reduce, self.expand, self.linear, self.gate = layer(width, 3), layer(3, width), linear, gate

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3), keepdim=not self.linear)
        s = self.gate(self.expand(F.relu(self.reduce(s))))
        return x * (s[:, :, None, None] if self.linear else s)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2: half of the channels pass, the other half is convolved, and they are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(conv(half, half, 1), conv(half, half, 3, groups=half), conv(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.branch(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Inception(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.three = conv(inputs, 3, 1), nn.Sequential(conv(inputs, 4, 1), conv(4, 5, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], 1)


class UNet(nn.Module):
    def __init__(self, bilinear: bool) -> None:
        super().__init__()
        self.one, self.two, self.three = conv(3, 6), conv(6, 8, stride=2), conv(8, 10, stride=2)
        self.up2 = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(10, 8, 1)) if bilinear else (
            nn.ConvTranspose2d(10, 8, 2, 2)
        )  # fmt: skip
        self.up1 = nn.ConvTranspose2d(7, 6, 4, 2, 1)
        self.join2, self.join1, self.out = conv(16, 7), conv(12, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x)
        two = self.two(one)
        x = self.join2(torch.cat([two, self.up2(self.three(two))], 1))
        return self.out(self.join1(torch.cat([self.up1(x), one], 1)))


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2): divides by a mean over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.rand(1, 1, 1, width)), nn.Parameter(torch.rand(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        return x + self.beta + self.gamma * x * (size / (size.mean(-1, keepdim=True) + 1e-6))


class Mixer(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 9), nn.GELU(), nn.Linear(9, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 14), nn.GELU(), nn.Linear(14, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class SplitAttention(nn.Module):
    """ResNeSt: two cardinal copies of every channel, weighted against each other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2)
        self.down, self.up, self.width = nn.Conv2d(width, 5, 1), nn.Conv2d(5, 2 * width, 1), width

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        parts = F.relu(self.conv(x)).reshape(n, 2, self.width, h, w)
        pooled = parts.sum(1).mean((2, 3), keepdim=True)
        weights = self.up(F.relu(self.down(pooled))).view(n, 2, self.width, 1, 1).softmax(1)
        return (parts * weights).sum(1)


class Pyramid(nn.Module):
    """Features of three scales, top-down joined, one head for all: a dict of lists out."""

    def __init__(self) -> None:
        super().__init__()
        self.c3, self.c4, self.c5 = conv(3, 6, stride=2), conv(6, 8, stride=2), conv(8, 9, stride=2)
        self.lateral = nn.ModuleList(nn.Conv2d(c, 7, 1) for c in (6, 8, 9))
        self.smooth = nn.ModuleList(nn.Conv2d(7, 7, 3, padding=1) for _ in range(3))
        self.classes, self.boxes = nn.Conv2d(7, 4, 3, padding=1), nn.Conv2d(7, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        c3 = self.c3(x)
        c4 = self.c4(c3)
        p5 = self.lateral[2](self.c5(c4))
        p4 = self.lateral[1](c4) + F.interpolate(p5, scale_factor=2)
        p3 = self.lateral[0](c3) + F.interpolate(p4, scale_factor=2)
        maps = [F.relu(layer(p)) for layer, p in zip(self.smooth, (p3, p4, p5), strict=True)]
        scores = torch.cat([self.classes(m).flatten(2).transpose(1, 2) for m in maps], 1)
        return {"scores": scores, "boxes": [self.boxes(m) for m in maps]}


class CrossStage(nn.Module):
    """YOLO's C2f: a split, a chain on its last part, and everything concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.chain = conv(width, 8, 1), nn.ModuleList(conv(4, 4) for _ in range(2))
        self.last = conv(16, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.first(x).split((4, 4), 1))
        for layer in self.chain:
            parts.append(layer(parts[-1]) + parts[-1])
        return self.last(torch.cat(parts, 1))


class SimpleGate(nn.Module):
    """NAFNet: the first half of the channels times the second."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * b


class WaveNet(nn.Module):
    """Gated causal convolutions with skips, on sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(2, 6, 1), nn.Conv1d(5, 3, 1)
        self.gates = nn.ModuleList(nn.Conv1d(6, 12, 2, dilation=d) for d in (1, 2))
        self.outs, self.skips = (nn.ModuleList(nn.Conv1d(6, n, 1) for _ in range(2)) for n in (6, 5))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), torch.zeros(())
        for gate, out, skip in zip(self.gates, self.outs, self.skips, strict=True):
            a, b = gate(F.pad(x, (gate.dilation[0], 0))).chunk(2, 1)
            y = torch.tanh(a) * torch.sigmoid(b)
            x, total = x + out(y), total + skip(y)
        return self.last(F.relu(total))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Linear(3, 6), nn.Linear(5, 7)
        self.cell, self.head = kind(6, 5, batch_first=True), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.cell(self.embed(x))[0][:, -1])))


def _tail(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)]


def _image(size: int = 8) -> tuple[Tensor]:
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7)),)


def _net(*layers: Callable[[], nn.Module], width: int, size: int = 8) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (nn.Sequential(*(build() for build in layers), *_tail(width)), _image(size))


FAMILY_NETS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "bottleneck": _net(
        lambda: conv(3, 8),
        lambda: Residual(conv(8, 4, 1), conv(4, 4), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)), nn.ReLU, width=8,
    ),
    "mobilenet_v1": _net(lambda: conv(3, 6), lambda: conv(6, 6, groups=6), lambda: conv(6, 10, 1), width=10),
    "mobilenet_v3": _net(
        lambda: conv(3, 6, act=nn.Hardswish),
        lambda: Residual(conv(6, 9, 1), conv(9, 9, 5, groups=9), Squeeze(9, gate=F.hardsigmoid), nn.Conv2d(9, 6, 1)),
        lambda: conv(6, 7, 1, act=nn.Hardswish), width=7,
    ),
    "efficientnet": _net(
        lambda: conv(3, 6, act=nn.SiLU),
        lambda: Residual(conv(6, 12, 1, act=nn.SiLU), conv(12, 12, groups=12), Squeeze(12), conv(12, 6, 1)),
        width=6,
    ),
    "squeeze_linear": _net(lambda: conv(3, 6), lambda: Residual(conv(6, 5), conv(5, 6), Squeeze(6, True)), width=6),
    "shufflenet": _net(lambda: conv(3, 8), lambda: ShuffleUnit(8), lambda: ShuffleUnit(8), lambda: conv(8, 5), width=5),
    "inception": _net(lambda: conv(3, 6), lambda: Inception(6), lambda: Inception(10), width=10),
    "unet": lambda: (UNet(False), _image()),
    "unet_bilinear": lambda: (UNet(True), _image()),
    "convnext": _net(lambda: nn.Conv2d(3, 6, 2, 2), lambda: ConvNextBlock(6), lambda: ConvNextBlock(6), width=6),
    "super_resolution": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.PReLU(8), Residual(conv(8, 8), nn.Conv2d(8, 8, 3, padding=1)),
            nn.Conv2d(8, 20, 3, padding=1), nn.PixelShuffle(2), nn.PReLU(), nn.Conv2d(5, 3, 3, padding=1),
        ), _image(),
    ),
    "resnest": _net(lambda: conv(3, 6), lambda: SplitAttention(6), lambda: conv(6, 4), width=4),
    "pyramid": lambda: (Pyramid(), _image(16)),
    "cross_stage": _net(lambda: conv(3, 6), lambda: CrossStage(6), width=6),
    "simple_gate": _net(
        lambda: nn.Conv2d(3, 6, 1), lambda: Residual(nn.Conv2d(6, 10, 1), SimpleGate(), nn.Conv2d(5, 6, 1)), width=6
    ),
    "instance_norm": _net(
        lambda: nn.Conv2d(3, 6, 3), lambda: nn.InstanceNorm2d(6, affine=True), nn.ReLU, lambda: conv(6, 4), width=4
    ),
    "group_norm": _net(
        lambda: nn.Conv2d(3, 12, 3), lambda: nn.GroupNorm(4, 12), nn.ReLU, lambda: conv(12, 4), width=4
    ),
    "mixer": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 6, 2, 2), nn.Flatten(2), Transpose(), Mixer(16, 6), Mixer(16, 6), nn.LayerNorm(6),
            Transpose(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 2),
        ), _image(),
    ),
    "wavenet": lambda: (WaveNet(), (torch.randn(2, 2, 9, generator=torch.Generator().manual_seed(2)),)),
    "conv3d": lambda: (
        nn.Sequential(
            nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.Conv3d(6, 6, 3, groups=6), nn.MaxPool3d(2),
            nn.ConvTranspose3d(6, 4, 2), nn.Flatten(), nn.Linear(4 * 8, 3),
        ), (torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(2)),),
    ),
}  # fmt: skip
"""Every net by name: a function that returns the module and its positional inputs, batch 2 first."""


class Transpose(nn.Module):
    """[N, T, C] to [N, C, T] and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
