"""A model of the table: how it is made, and what it is called on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2
WORDS = 96
"""Size of the vocabulary of every language model here."""


@dataclass(frozen=True)
class Case:
    """One model with random weights.

    Attributes:
        name: As its library calls it.
        library: Where it comes from.
        family: What it stands for.
        build: Gives the model and its example inputs.
        quick: Whether the short run has it.
    """

    name: str
    library: str
    family: str
    build: Callable[[], tuple[nn.Module, Any]]
    quick: bool = False

    @property
    def key(self) -> str:
        """Name of its result file."""
        return f"{self.library}.{self.name}"


def image(size: int, channels: int = 3) -> Tensor:
    """Random images [batch, channels, size, size]."""
    return torch.randn(BATCH, channels, size, size)


def words(length: int) -> Tensor:
    """Random token ids [batch, length]; 0 and 1 are left to special tokens."""
    return torch.randint(2, WORDS, (BATCH, length))


def mask(length: int) -> Tensor:
    """An attention mask [batch, length] whose later samples are shorter."""
    lengths = torch.arange(length, length - BATCH, -1)
    return (torch.arange(length)[None] < lengths[:, None]).long()


@torch.no_grad()
def unsettle(model: nn.Module) -> nn.Module:
    """Moves every parameter and statistic off the neutral value that it starts with.

    Scales of one or almost zero, zero biases and untouched statistics hide mistakes: a channel that is dropped in the
    wrong place changes nothing.
    """
    for parameter in model.parameters():
        if parameter.ndim <= 1 or float(parameter.abs().max()) < 1e-3:
            parameter.add_(0.2 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.1 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(torch.empty_like(buffer).uniform_(0.5, 1.5))
    return model
