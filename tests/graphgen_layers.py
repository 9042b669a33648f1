"""Steps of random networks that are one layer, or one function of every element."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import graphgen_tokens as tokens
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Choose = Callable[[Sequence[Any]], Any]

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.hardsigmoid, F.elu, torch.tanh, torch.sigmoid, torch.abs,
    lambda x: F.leaky_relu(x, 0.1),
    lambda x: x.clamp(-1, 2),
    lambda x: F.relu(x.clone(), inplace=True),
    lambda x: (x + 0.5) / 2 - 0.1,
    lambda x: x.square(),
    lambda x: 1 - x,
    lambda x: x.to(torch.float64).contiguous(),
    lambda x: torch.where(x > 0, x, 0.2 * x),
)  # fmt: skip


@dataclass(frozen=True)
class Value:
    """A value of the network: an image [N, channels, size, size], or features [N, channels] where size is 0."""

    index: int
    channels: int
    size: int


@dataclass
class Layers:
    """Collects steps; every method adds some and returns the value they compute."""

    choose: Choose
    layers: nn.ModuleList = field(default_factory=nn.ModuleList)
    steps: list[tuple[Callable[..., Any], tuple[int, ...]]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)

    def step(self, name: str, call: Callable[..., Any], inputs: Sequence[Value], channels: int, size: int) -> Value:
        if isinstance(call, nn.Module) and not any(call is layer for layer in self.layers):
            self.layers.append(call)
        self.steps.append((call, tuple(v.index for v in inputs)))
        value = Value(len(self.steps), channels, size)
        shape = f"[{channels}, {size}, {size}]" if size else f"[{channels}]"
        self.log.append(f"v{value.index} = {name}({', '.join(f'v{v.index}' for v in inputs)})  # {shape}")
        self.values.append(value)
        return value

    def conv(self, x: Value, out: int = 0, stride: int = 0) -> Value:
        stride = stride or (self.choose([1, 1, 2]) if x.size >= 4 else 1)
        kernel = self.choose([1, 3])
        groups = self.choose([g for g in (1, 1, 2, 3, 4) if x.channels % g == 0])
        out = out or groups * self.choose([1, 2, 3, 4, 5])
        groups = groups if out % groups == 0 else 1
        layer = nn.Conv2d(x.channels, out, kernel, stride, kernel // 2, groups=groups, bias=self.choose([False, True]))
        return self.step(f"conv{kernel}/{stride} g{groups}", layer, [x], out, -(-x.size // stride))

    def depthwise(self, x: Value) -> Value:
        times = self.choose([1, 1, 2])
        layer = nn.Conv2d(x.channels, times * x.channels, 3, 1, 1, groups=x.channels, bias=self.choose([False, True]))
        return self.step(f"depthwise x{times}", layer, [x], times * x.channels, x.size)

    def transposed(self, x: Value) -> Value:
        groups = self.choose([g for g in (1, 2, x.channels) if x.channels % g == 0])
        out = groups * self.choose([1, 2, 3]) if groups < 6 else groups
        layer = nn.ConvTranspose2d(x.channels, out, 3, 1, 1, groups=groups, bias=self.choose([False, True]))
        return self.step(f"transposed g{groups}", layer, [x], out, x.size)

    def norm(self, x: Value) -> Value:
        affine = self.choose([True, True, False])
        return self.step("bn", nn.BatchNorm2d(x.channels, affine=affine), [x], x.channels, x.size)

    def group_norm(self, x: Value) -> Value:
        kind = self.choose(["group", "group", "instance", "layer"])
        if kind == "instance" and x.size > 1:
            return self.step("instance norm", nn.InstanceNorm2d(x.channels, affine=True), [x], x.channels, x.size)
        if kind == "layer":
            return self.step("layer norm", tokens.ChannelNorm(x.channels), [x], x.channels, x.size)
        groups = self.choose([g for g in (1, 2, 3, 4, x.channels) if x.channels % g == 0])
        return self.step(f"group norm {groups}", nn.GroupNorm(groups, x.channels), [x], x.channels, x.size)

    def other_ranks(self, x: Value) -> Value:
        kind, out = self.choose(["1d", "3d", "transposed 2"]), self.choose([2, 4])
        if kind == "transposed 2" and x.size <= 8:
            return self.step(kind, nn.ConvTranspose2d(x.channels, out, 2, 2), [x], out, 2 * x.size)
        if kind == "1d":
            layer: nn.Module = tokens.Reshaped(nn.Conv1d(x.channels, out, 3, padding=1), 1)
        else:
            layer = tokens.Reshaped(nn.Conv3d(x.channels, out, 3, padding=1), 3)
        return self.step(f"conv {kind}", layer, [x], out, x.size)

    def prelu(self, x: Value) -> Value:
        return self.step("prelu", nn.PReLU(self.choose([1, x.channels])), [x], x.channels, x.size)

    def dropout(self, x: Value) -> Value:
        return self.step("dropout", self.choose([nn.Dropout(0.2), nn.Dropout2d(0.2)]), [x], x.channels, x.size)

    def pixel_linear(self, x: Value) -> Value:
        out = self.choose([2, 3, 5])
        x = self.step("nhwc", lambda t: t.permute(0, 2, 3, 1), [x], x.channels, x.size)
        self.values.pop()
        x = self.step("linear", nn.Linear(x.channels, out), [x], out, x.size)
        self.values.pop()
        return self.step("nchw", lambda t: t.permute(0, 3, 1, 2), [x], out, x.size)

    def token_linear(self, x: Value) -> Value:
        size, out = x.size, self.choose([2, 4])
        x = self.step("tokens", lambda t: t.flatten(2).transpose(1, 2), [x], x.channels, x.size)
        self.values.pop()
        x = self.step("linear", nn.Linear(x.channels, out), [x], out, x.size)
        self.values.pop()
        return self.step("image", lambda t: t.transpose(1, 2).reshape(-1, out, size, size), [x], out, size)

    def width_linear(self, x: Value) -> Value:
        return self.step("linear along the width", nn.Linear(x.size, x.size), [x], x.channels, x.size)

    def activation(self, x: Value) -> Value:
        number = self.choose(range(len(ACTIVATIONS)))
        return self.step(f"activation {number}", ACTIVATIONS[number], [x], x.channels, x.size)
