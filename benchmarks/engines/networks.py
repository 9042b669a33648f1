"""Networks that engines are built of, in the shapes that people deploy; weights are random: this is about structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.examples.cifar_mobilenet import mobilenet_v2
from secateur.examples.cifar_resnet import resnet20

STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
"""Width, blocks and stride of the stages of ResNet-50 (He et al. 2016, table 1)."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a residual connection; the stride lies on the 3x3 one."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        same = channels == out and stride == 1
        projection = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.shortcut = nn.Identity() if same else projection

    def forward(self, x: Tensor) -> Tensor:
        """Images [batch, channels, height, width]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50 for 224x224 images."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        blocks, channels = [], 64
        for width, count, stride in STAGES:
            for index in range(count):
                blocks.append(Bottleneck(channels, width, stride if index == 0 else 1))
                channels = 4 * width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images [batch, 3, 224, 224]."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each with a residual connection and layer normalisation behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [batch, length, width]."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """A BERT-like encoder (Devlin et al. 2019) with a classifier on the first token."""

    def __init__(self, width: int = 256, heads: int = 4, layers: int = 4, length: int = 128) -> None:
        super().__init__()
        self.tokens = nn.Embedding(30_522, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.head = nn.Linear(width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of token numbers [batch, length]."""
        return self.head(self.layers(self.norm(self.tokens(ids) + self.positions))[:, 0])


@dataclass(frozen=True)
class Network:
    """A network and inputs for it.

    Attributes:
        name: For the table.
        make: Makes the module.
        inputs: Makes a batch of this size.
        samples: Samples for calibration.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    samples: int = 16


def images(size: int) -> Callable[[int], Tensor]:
    """Random images."""
    return lambda batch: torch.randn(batch, 3, size, size)


NETWORKS = (
    Network("ResNet-20, 32x32", resnet20, images(32)),
    Network("MobileNetV2, 32x32", mobilenet_v2, images(32)),
    Network("ResNet-50, 224x224", ResNet50, images(224), samples=4),
    Network("BERT-like d256 L4 T128", Encoder, lambda batch: torch.randint(0, 30_522, (batch, 128))),
)
"""What is built."""


def settle(module: nn.Module, inputs: Tensor) -> nn.Module:
    """Gives weights batch norm statistics of their own, so that values neither vanish nor explode."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean of all batches
    with torch.no_grad():
        module.train()(inputs)
    return module.eval()
