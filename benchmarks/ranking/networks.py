"""The networks that speed is measured on, with random weights and one batch of random data each.

Time and memory do not depend on the weights, so nothing has to be downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.examples.cifar_resnet import resnet20, resnet32, resnet56
from secateur.examples.wide_resnet import wide_resnet


@dataclass(frozen=True)
class Network:
    """A network, the batch it is usually measured on, and what its data look like.

    Attributes:
        build: Makes the module; takes its width (`widths` says what that is).
        width: The usual width.
        batch: The usual batch.
        inputs: Makes random inputs of a batch.
        classes: Number of labels.
    """

    build: Callable[[int], nn.Module]
    width: int
    batch: int
    inputs: Callable[[int], Tensor]
    classes: int = 10


def images(batch: int) -> Tensor:
    """[batch, 3, 32, 32]."""
    return torch.randn(batch, 3, 32, 32)


def tokens(batch: int) -> Tensor:
    """Word numbers, [batch, 64]."""
    return torch.randint(0, Encoder.VOCABULARY, (batch, 64))


class EncoderLayer(nn.Module):
    """Attention and a feed-forward network, each with a residual connection and a normalisation behind (BERT)."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, words, hidden]."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """A small BERT with a classifier on the first word."""

    VOCABULARY = 1000

    def __init__(self, hidden: int, layers: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(self.VOCABULARY, hidden), nn.Parameter(torch.randn(64, hidden) * 0.02)
        self.norm = nn.LayerNorm(hidden)
        self.layers = nn.ModuleList(EncoderLayer(hidden, hidden // 64) for _ in range(layers))
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes] of words [batch, 64]."""
        x = self.norm(self.words(x) + self.places)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x[:, 0])


NETWORKS: Mapping[str, Network] = {
    "resnet20": Network(lambda width: resnet20(width=width), 16, 128, images),
    "resnet32": Network(lambda width: resnet32(width=width), 16, 128, images),
    "resnet56": Network(lambda width: resnet56(width=width), 16, 128, images),
    "wrn28_8": Network(lambda width: wide_resnet(depth=28, widen=width), 8, 8, images),
    "encoder": Network(Encoder, 256, 32, tokens),
}
"""By name; `width` is the width of the first stage, the widening factor, or the hidden size."""
