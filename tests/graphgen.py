"""Random small networks made of everything that the label rules know, and of some things that they must refuse.

`build(choose)` takes its decisions from `choose(options)`: `random.Random(seed).choice`, or a draw of hypothesis, which
then shrinks a failing network to a small one. `str(net)` lists the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import graphgen_tokens as tokens
import torch
import torch.nn.functional as F
from nets import randomise_bn
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
class Builder:
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

    # Layers.

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

    # Elementwise.

    def activation(self, x: Value) -> Value:
        number = self.choose(range(len(ACTIVATIONS)))
        return self.step(f"activation {number}", ACTIVATIONS[number], [x], x.channels, x.size)

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

    # Movement.

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

    def branches(self, x: Value) -> Value:
        parts = self.choose([p for p in (2, 3, 4) if x.channels % p == 0] or [1])
        how = self.choose(["chunk", "split", "sizes"])
        width = x.channels // parts

        def call(t: Tensor, part: int) -> Tensor:
            if how == "chunk":
                return t.chunk(parts, 1)[part]
            return t.split(width if how == "split" else [width] * parts, 1)[part]

        outs = [self.step(f"{how} {i}/{parts}", lambda t, i=i: call(t, i), [x], width, x.size) for i in range(parts)]
        outs[-1] = self.choose([self.conv, self.activation, self.norm])(outs[-1])
        out = outs[0]
        for other in self.choose([outs[1:], outs[:0:-1]]):
            out = self.choose([self.cat, self.join])(out, other)
        return out

    def uneven_split(self, x: Value) -> Value:
        if x.channels < 3:
            return x
        cut = self.choose(range(1, x.channels))
        a = self.step(f"[:, :{cut}]", lambda t: t[:, :cut], [x], cut, x.size)
        b = self.step(f"[:, {cut}:]", lambda t: t[:, cut:], [x], x.channels - cut, x.size)
        return self.choose([self.cat, self.join])(b, a)

    def strided(self, x: Value) -> Value:
        start, step = self.choose([0, 1]), self.choose([2, 3])
        count = len(range(start, x.channels, step))
        if count == 0:
            return x
        return self.step(f"[:, {start}::{step}]", lambda t: t[:, start::step], [x], count, x.size)

    def shuffle(self, x: Value) -> Value:
        g = self.choose([g for g in (1, 2, 3, 4) if x.channels % g == 0])
        c, size = x.channels // g, x.size
        how = self.choose(["view", "unflatten", "op"])
        if how == "op":
            return self.step(f"channel_shuffle {g}", nn.ChannelShuffle(g), [x], x.channels, x.size)
        if how == "view":

            def call(t: Tensor) -> Tensor:
                return t.contiguous().view(-1, g, c, size, size).transpose(1, 2).reshape(-1, g * c, size, size)

        else:

            def call(t: Tensor) -> Tensor:
                return t.unflatten(1, (g, c)).permute(0, 2, 1, 3, 4).flatten(1, 2)

        return self.step(f"shuffle {g} by {how}", call, [x], x.channels, x.size)

    def pixel_shuffle(self, x: Value) -> Value:
        if x.channels % 4 or x.size > 8:
            return self.step("pixel_unshuffle", nn.PixelUnshuffle(2), [x], 4 * x.channels, x.size // 2) if (
                x.size % 2 == 0 and x.channels <= 8
            ) else x  # fmt: skip
        c, size = x.channels // 4, x.size
        if self.choose([True, False]):
            return self.step("pixel_shuffle", nn.PixelShuffle(2), [x], c, 2 * size)

        def call(t: Tensor) -> Tensor:
            t = t.reshape(-1, c, 2, 2, size, size).permute(0, 1, 4, 2, 5, 3)
            return t.reshape(-1, c, 2 * size, 2 * size)

        return self.step("pixel shuffle by hand", call, [x], c, 2 * size)

    def rearrange(self, x: Value) -> Value:
        name, call, factor = self.choose(
            [
                ("flip", lambda t: t.flip(1), 1),
                ("repeat", lambda t: t.repeat(1, 2, 1, 1), 2),
                ("double", lambda t: torch.cat([t, t], 1), 2),
                ("stack", lambda t: torch.stack([t, F.relu(t)], 1).sum(1), 1),
                ("stack last", lambda t: torch.stack([t, F.relu(t)], -1).amax(-1), 1),
                ("spatial cat", lambda t: torch.cat([t, t.flip(2)], 2)[:, :, : t.shape[2]], 1),
                ("transpose twice", lambda t: torch.tanh(t.transpose(1, 3)).transpose(1, 3), 1),
                ("batch merge", lambda t: F.relu(t.flatten(0, 1)).reshape(t.shape), 1),
                ("spatial flatten", lambda t: t.flatten(2).softmax(-1).reshape(t.shape), 1),
                ("channel softmax", lambda t: t.softmax(1), 1),
                ("roll", lambda t: t.roll((1, -1), (2, 3)), 1),
                ("channel roll", lambda t: t.roll(1, 1), 1),
                ("channel sort", lambda t: t.sort(1)[0], 1),
                ("cumulative", lambda t: t.cumsum(2), 1),
                ("rms", lambda t: t * torch.rsqrt(t.square().mean((2, 3), keepdim=True) + 1e-3), 1),
                ("row by index", lambda t: t[:, :, torch.arange(t.shape[2]).flip(0)], 1),
                ("computed rows", tokens.rows_by_value, 1),
                ("gather", tokens.gathered, 1),
                ("repeat gate", lambda t: t * t.mean((1, 2, 3), keepdim=True).repeat(1, t.shape[1], 1, 1), 1),
                ("expand gate", lambda t: t * t[:, :, :1, :1].expand(-1, -1, t.shape[2], t.shape[3]), 1),
                ("einsum gate", lambda t: torch.einsum("nchw,nc->nchw", t, t.mean((2, 3))), 1),
                ("repeat_interleave", lambda t: t.repeat_interleave(2, 1), 2),
                ("channel sum", lambda t: t / (1 + t.square().sum(1, keepdim=True)), 1),
            ]
        )
        return self.step(name, call, [x], factor * x.channels, x.size)

    def glu(self, x: Value) -> Value:
        return self.step("glu", lambda t: F.glu(t, 1), [x], x.channels // 2, x.size) if x.channels % 2 == 0 else x

    def pool(self, x: Value) -> Value:
        if x.size < 4:
            return self.step("upsample", lambda t: F.interpolate(t, scale_factor=2), [x], x.channels, 2 * x.size)
        name, call = self.choose([("max_pool", F.max_pool2d), ("avg_pool", F.avg_pool2d)])
        return self.step(name, lambda t: call(t, 2), [x], x.channels, x.size // 2)

    # The head.

    def head(self, x: Value) -> Value:
        kind = self.choose(["mean", "adaptive", "flatten", "spatial"])
        if kind == "mean":
            x = self.step("mean", lambda t: t.mean((2, 3)), [x], x.channels, 0)
        elif kind == "adaptive":
            x = self.step("adaptive", lambda t: F.adaptive_max_pool2d(t, 1).flatten(1), [x], x.channels, 0)
        elif kind == "flatten":
            flat = self.choose([lambda t: t.reshape(t.shape[0], -1), lambda t: t.flatten(1)])
            x = self.step("flatten", flat, [x], x.channels * x.size * x.size, 0)
        else:
            return self.step("1x1", nn.Conv2d(x.channels, 2, 1), [x], 2, x.size)
        if self.choose([True, False]):
            x = self.step("hidden", nn.Linear(x.channels, 6), [x], 6, 0)
            x = self.step("bn", nn.BatchNorm1d(6), [x], 6, 0)
            x = self.step("relu", F.relu, [x], 6, 0)
        return self.step("linear", nn.Linear(x.channels, 3), [x], 3, 0)


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


class GraphNet(nn.Module):
    """A network that runs the steps of a builder."""

    def __init__(self, builder: Builder, outputs: Sequence[Value]) -> None:
        super().__init__()
        self.layers = builder.layers
        self.steps = builder.steps
        self.outputs = [v.index for v in outputs]
        self.log = [*builder.log, f"return {', '.join(f'v{i}' for i in self.outputs)}"]

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for call, inputs in self.steps:
            values.append(call(*(values[i] for i in inputs)))
        out = [values[i] for i in self.outputs]
        return out[0] if len(out) == 1 else tuple(out)

    def __str__(self) -> str:
        return "\n".join(self.log)


UNARY = [
    "conv", "conv", "conv", "depthwise", "transposed", "shared_conv", "tied_kernels", "norm", "norm", "group_norm",
    "prelu", "dropout", "pixel_linear", "token_linear", "width_linear", "activation", "activation", "scale",
    "residual", "option_a", "squeeze_excite", "spatial_gate", "cat_zeros", "branches", "uneven_split", "strided",
    "shuffle", "pixel_shuffle", "rearrange", "rearrange", "glu", "pool", "attention", "attention", "contraction",
    "other_ranks",
]  # fmt: skip


def build(choose: Choose, seed: int = 0) -> GraphNet:
    """A random network for inputs [N, 3, 8, 8], in float64 (so that only errors of a rule show) and eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        builder = Builder(choose)
        x = builder.conv(Value(0, 3, 8), choose([4, 6, 8]), 1)
        for _ in range(choose([3, 4, 5, 6, 7])):
            x = choose([x, x, choose(builder.values)])
            if x.channels > 24 or x.size > 16:
                x = builder.conv(x, 4, 0)
            kind = choose([*UNARY, "join", "cat"])
            if kind in ("join", "cat"):
                x = getattr(builder, kind)(x, choose(builder.values))
            else:
                x = getattr(builder, kind)(x)
        outputs = [builder.head(x)]
        if choose([False, False, True]):
            outputs.append(builder.head(choose([v for v in builder.values if v.size])))
        randomise_bn(net := GraphNet(builder, outputs), seed)
    return net.double().eval()
