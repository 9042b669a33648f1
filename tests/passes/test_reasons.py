"""Refusals say what stands in the way, in which module and line, and what to do; doing that helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same_function
from torch import Tensor, nn

from secateur.errors import Refused
from secateur.passes.capture import capture
from secateur.passes.program import Program


class Alibi(nn.Module):
    """Attention with a slope for every head on the distance of positions (Bloom), heads merged into the batch."""

    def __init__(self, held: bool, heads: int = 3, size: int = 4) -> None:
        super().__init__()
        width = heads * size
        self.qkv, self.out, self.heads = nn.Linear(6, 3 * width), nn.Linear(width, 2), heads
        self.held = held
        if held:
            self.register_buffer("slopes", self.numbers())

    def numbers(self) -> Tensor:
        return torch.pow(0.5, torch.arange(1, 1 + self.heads, dtype=torch.float32))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, _ = x.shape
        slopes = self.slopes if self.held else torch.pow(0.5, torch.arange(1, 1 + self.heads, dtype=torch.float32))
        distance = ((mask.cumsum(-1) - 1) * mask)[:, None, :]
        bias = (slopes[..., None] * distance).reshape(n * self.heads, 1, t)
        q, k, v = (
            part.view(n, t, self.heads, -1).transpose(1, 2).reshape(n * self.heads, t, -1)
            for part in self.qkv(x).chunk(3, -1)
        )
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=0.5)
        y = torch.bmm(scores.softmax(-1), v).view(n, self.heads, t, -1).transpose(1, 2).reshape(n, t, -1)
        return self.out(y)


def frozen(program: Program, name: str) -> Refused:
    refused = {group.name: group.frozen for group in program.groups}[name]
    assert refused is not None
    return refused


def test_slopes_that_forward_makes_and_what_the_hint_is_worth() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    refused = frozen(capture(Alibi(held=False), inputs), "qkv")
    assert refused.reason == "aten.baddbmm joins it with numbers that forward makes, which cannot shrink"
    assert "buffer" in refused.hint
    line = next(int(n) for n in re.findall(r"test_reasons\.py:(\d+)", refused.hint))
    with open(__file__) as source:
        assert "torch.arange(1, 1 + self.heads" in source.readlines()[line - 1]

    program = capture(Alibi(held=True), inputs)
    widths = {group.name: group.width for group in program.groups if group.frozen is None}
    assert widths == {"qkv": 3}
    more = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.int64)
    smaller = assert_same_function(program, {"qkv": [0, 2]}, [inputs, more], 1e-5)
    assert smaller.module().get_buffer("slopes").shape == (2,)
