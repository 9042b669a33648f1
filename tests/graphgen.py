"""Random small networks made of everything that the label rules know, and of some things that they must refuse.

`build(choose)` takes its decisions from `choose(options)`: `random.Random(seed).choice`, or a draw of hypothesis, which
then shrinks a failing network to a small one. `str(net)` lists the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from graphgen_layers import Choose, Value
from graphgen_movement import Movement
from nets import randomise_bn
from torch import Tensor, nn


class Builder(Movement):
    """All steps, and how a network ends."""

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
