"""Steps of random networks that bring values together: sums, gates, concatenations, shared weights, attention."""

from __future__ import annotations

import graphgen_tokens as tokens
import torch
import torch.nn.functional as F
from graphgen_layers import Layers, Value
from torch import Tensor, nn


class Joins(Layers):
    """Adds to the steps of layers those that join."""

    def shared_conv(self, x: Value) -> Value:
        layer = nn.Conv2d(x.channels, x.channels, 3, 1, 1, bias=self.choose([False, True]))
        first = self.step("shared conv", layer, [x], x.channels, x.size)
        return self.step("shared conv again", layer, [self.choose([first, self.activation(first)])], x.channels, x.size)

    def tied_kernels(self, x: Value) -> Value:
        one, two = (nn.Conv2d(x.channels, 4, 3, 1, d, dilation=d, bias=False) for d in (1, 2))
        two.weight = one.weight
        a = self.step("tied", one, [x], 4, x.size)
        b = self.step("tied, dilated", two, [x], 4, x.size)
        return self.choose([self.join(a, b), self.cat(a, b)])

    def attention(self, x: Value) -> Value:
        if x.size > 4:
            x = self.step("small", lambda t: F.adaptive_avg_pool2d(t, 2), [x], x.channels, 2)
        heads, size = self.choose([1, 2, 3]), self.choose([2, 4])
        kind, out = self.choose(list(tokens.ATTENTION)), self.choose([3, 5, x.channels])
        layer = tokens.ATTENTION[kind](x.channels, out, heads, size)
        out = self.step(f"{kind} {heads}x{size}", layer, [x], out, x.size)
        return self.join(out, x) if self.choose([False, True]) else out

    def contraction(self, x: Value) -> Value:
        kind, out = self.choose(list(tokens.CONTRACTIONS)), self.choose([2, 4, x.channels])
        layer = tokens.CONTRACTIONS[kind](x.channels, out, x.size)
        out = layer.outputs
        return self.step(kind, layer, [x], out, x.size)

    def scale(self, x: Value) -> Value:
        shapes = [(x.channels, 1, 1), (1, x.channels, 1, 1), (1,), (x.channels, x.size, x.size), (x.size, x.size)]
        return self.step("scale", Constant(self.choose(shapes), self.choose("*+")), [x], x.channels, x.size)

    def join(self, x: Value, y: Value) -> Value:
        if (y.channels, y.size) != (x.channels, x.size):
            y = self.match(y, x)
        name, call = self.choose(
            [("add", torch.add), ("mul", torch.mul), ("sub", torch.sub), ("maximum", torch.maximum), ("add_", added)]
        )
        return self.step(name, call, [x, y], x.channels, x.size)

    def match(self, x: Value, like: Value) -> Value:
        if x.size != like.size:
            size = like.size
            x = self.step("resize", lambda t: F.adaptive_avg_pool2d(t, size), [x], x.channels, size)
        return x if x.channels == like.channels else self.conv(x, like.channels, 1)

    def residual(self, x: Value) -> Value:
        out = self.activation(self.norm(self.conv(x, 0, 1)))
        return self.join(self.conv(out, x.channels, 1), x)

    def option_a(self, x: Value) -> Value:
        if x.size < 2:
            return self.activation(x)
        front, back = self.choose([(1, 1), (2, 2), (0, 3), (1, 2)])
        channels = x.channels + front + back
        short = self.step(
            f"pad-slice {front} {back}",
            lambda t: F.pad(t[:, :, ::2, ::2], (0, 0, 0, 0, front, back)),
            [x],
            channels,
            -(-x.size // 2),
        )
        return self.choose([self.join(self.conv(x, channels, 2), short), short])

    def squeeze_excite(self, x: Value) -> Value:
        hidden = self.choose([2, 4])
        g = self.step("mean", lambda t: t.mean((2, 3), keepdim=True), [x], x.channels, 1)
        g = self.step("reduce", nn.Conv2d(x.channels, hidden, 1), [g], hidden, 1)
        g = self.step("expand", nn.Conv2d(hidden, x.channels, 1), [self.activation(g)], x.channels, 1)
        return self.step("gate", lambda t, s: t * torch.sigmoid(s), [x, g], x.channels, x.size)

    def spatial_gate(self, x: Value) -> Value:
        kind = self.choose(["conv", "slice", "select", "mean", "amax"])
        if kind == "conv":
            g = self.step("one channel", nn.Conv2d(x.channels, 1, 1), [x], 1, x.size)
        else:
            call = {
                "slice": lambda t: t[:, :1],
                "select": lambda t: t[:, -1].unsqueeze(1),
                "mean": lambda t: t.mean(1, keepdim=True),
                "amax": lambda t: t.amax(1, keepdim=True),
            }[kind]
            g = self.step(kind, call, [x], 1, x.size)
        channels = x.channels
        if self.choose([False, True]):
            g = self.step("expand", lambda t: t.expand(-1, channels, -1, -1), [g], channels, x.size)
        return self.step("spatial gate", torch.mul, [x, g], x.channels, x.size)

    def cat(self, x: Value, y: Value) -> Value:
        if y.size != x.size:
            size = x.size
            y = self.step("resize", lambda t: F.interpolate(t, size=(size, size)), [y], y.channels, size)
        return self.step("cat", lambda *t: torch.cat(t, 1), [x, y], x.channels + y.channels, x.size)

    def cat_zeros(self, x: Value) -> Value:
        extra = self.choose([1, 2])

        def call(t: Tensor) -> Tensor:
            return torch.cat([t, t.new_zeros(t.shape[0], extra, t.shape[2], t.shape[3])], 1)

        return self.step(f"cat {extra} zeros", call, [x], x.channels + extra, x.size)


def added(x: Tensor, y: Tensor) -> Tensor:
    """An addition in place."""
    x = x.clone()
    x += y
    return x


class Constant(nn.Module):
    """A free parameter that multiplies or is added."""

    def __init__(self, shape: tuple[int, ...], operation: str) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(shape))
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value if self.operation == "*" else x + self.value
