"""Steps of random networks that move data: parts, shuffles, reshapes, pools."""

from __future__ import annotations

import graphgen_tokens as tokens
import torch
import torch.nn.functional as F
from graphgen_joins import Joins
from graphgen_layers import Value
from torch import Tensor, nn


class Movement(Joins):
    """Adds to layers and joins the steps that move data."""

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
                ("unfold, fold", lambda t: F.fold(F.unfold(t, 3, padding=1).relu(), t.shape[2:], 3, padding=1), 1),
                ("windows", lambda t: F.unfold(t, 3, padding=1).unflatten(2, tuple(t.shape[2:])), 9),
                ("rows of a merged batch", tokens.merged_rows, 1),
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
