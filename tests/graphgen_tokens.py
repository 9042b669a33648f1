"""What `graphgen` builds from images seen as tokens: attention in many forms, and contractions with free weights.

Every module maps an image [N, channels, S, S] to one with other channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from attention_functions import (
    batched,
    by_einsum,
    causal,
    cross_covariance,
    eager,
    interleaved,
    linear_attention,
    rotated,
)
from torch import Tensor, nn


def to_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def to_image(x: Tensor, size: int) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (size, size))


class TokenAttention(nn.Module):
    """Projections, an attention on [N, heads, T, size], and an output projection."""

    def __init__(
        self, attend: Callable[..., Tensor], inputs: int, outputs: int, heads: int, size: int, shared: int = 1
    ) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(inputs, shared * heads * size), nn.Linear(shared * heads * size, outputs)
        self.k, self.v = nn.Linear(inputs, heads * size), nn.Linear(inputs, heads * size)
        self.attend, self.size = attend, size

    def forward(self, x: Tensor) -> Tensor:
        t = to_tokens(x)
        parts = (layer(t).unflatten(2, (-1, self.size)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return to_image(self.out(self.attend(*parts).transpose(1, 2).flatten(2)), x.shape[2])


class FusedAttention(nn.Module):
    """One layer for queries, keys and values."""

    def __init__(self, inputs: int, outputs: int, heads: int, size: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(inputs, 3 * heads * size, bias=False), nn.Linear(heads * size, outputs)
        self.heads = heads
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        t = to_tokens(x)
        qkv = self.qkv(t).reshape(t.shape[0], t.shape[1], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-2, -1) + self.bias
        y = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(t.shape[0], t.shape[1], -1)
        return to_image(self.out(y), x.shape[2])


class TorchAttention(nn.Module):
    """nn.MultiheadAttention."""

    def __init__(self, inputs: int, outputs: int, heads: int, size: int) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(inputs, heads * size), nn.Linear(heads * size, outputs)
        self.mha = nn.MultiheadAttention(heads * size, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        t = self.first(to_tokens(x))
        return to_image(self.out(self.mha(t, t, t, need_weights=False)[0]), x.shape[2])


def rotary_halves(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(rotated(q), rotated(k), v)


def rotary_pairs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return eager(interleaved(q), interleaved(k), v)


def grouped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def grouped_expand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    n, heads, t, size = k.shape
    times = q.shape[1] // heads
    k, v = (x[:, :, None].expand(n, heads, times, t, size).reshape(n, heads * times, t, size) for x in (k, v))
    return eager(q, k, v)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """A mask from the tokens, the same for all heads, expanded to all."""
    mask = (q.square().sum((1, 3)) > 1.0)[:, None, None, :] | torch.ones(q.shape[2], 1, dtype=torch.bool)
    return F.scaled_dot_product_attention(q, k, v, mask.expand(-1, q.shape[1], -1, -1))


def _separate(attend: Callable[..., Tensor], shared: int = 1) -> Callable[..., nn.Module]:
    return lambda i, o, h, s: TokenAttention(attend, i, o, h, s, shared)


ATTENTION: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    **{
        f.__name__: _separate(f)
        for f in (
            eager, by_einsum, causal, batched, cross_covariance, linear_attention, rotary_halves, rotary_pairs, masked,
        )
    },
    "grouped": _separate(grouped, 2),
    "grouped_expand": _separate(grouped_expand, 2),
    "fused": FusedAttention,
    "torch": TorchAttention,
}  # fmt: skip
"""Attention by name: `build(inputs, outputs, heads, size of a head)`."""


class Contraction(nn.Module):
    """A free weight and a function of the image and the weight."""

    def __init__(self, outputs: int, shape: tuple[int, ...], call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.call, self.outputs = nn.Parameter(0.5 * torch.randn(shape)), call, outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight)


CONTRACTIONS: dict[str, Callable[[int, int, int], Contraction]] = {
    "einsum weight": lambda c, o, s: Contraction(o, (o, c), lambda x, w: torch.einsum("nchw,oc->nohw", x, w)),
    "einsum, weight first": lambda c, o, s: Contraction(o, (c, o), lambda x, w: torch.einsum("co,nc...->no...", w, x)),
    "einsum per channel": lambda c, o, s: Contraction(c, (c, s, s), lambda x, w: torch.einsum("nchw,chv->ncvw", x, w)),
    "matmul weight": lambda c, o, s: Contraction(
        o, (c, o), lambda x, w: (x.permute(0, 2, 3, 1) @ w).permute(0, 3, 1, 2)
    ),
    "turned weight": lambda c, o, s: Contraction(
        o, (o, c), lambda x, w: (x.permute(0, 2, 3, 1) @ w.T).permute(0, 3, 1, 2)
    ),
    "matmul along the width": lambda c, o, s: Contraction(c, (s, s), torch.matmul),
    "addmm": lambda c, o, s: Contraction(
        o, (c, o), lambda x, w: to_image(torch.addmm(w[0], to_tokens(x).flatten(0, 1), w).unflatten(0, (-1, s * s)), s)
    ),
    "bmm": lambda c, o, s: Contraction(c, (c, 1, 1), lambda x, w: torch.matmul(x, x.transpose(2, 3)) * w),
    "functional linear": lambda c, o, s: Contraction(
        o, (o, c), lambda x, w: F.linear(x.permute(0, 2, 3, 1), w.tanh()).permute(0, 3, 1, 2)
    ),
    "channel correlation": lambda c, o, s: Contraction(
        c, (c, 1), lambda x, w: to_image((to_tokens(x) @ (x.flatten(2) @ to_tokens(x)).softmax(-1)) * w[:, 0], s)
    ),
}  # fmt: skip
"""Contractions by name: `build(channels, outputs, size)`; the module says how many channels it returns."""


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Reshaped(nn.Module):
    """A convolution of another rank."""

    def __init__(self, layer: nn.Module, rank: int) -> None:
        super().__init__()
        self.layer, self.rank = layer, rank

    def forward(self, x: Tensor) -> Tensor:
        if self.rank == 1:
            return self.layer(x.flatten(2)).unflatten(2, tuple(x.shape[2:]))
        return self.layer(x.unsqueeze(2)).squeeze(2)


def rows_by_value(x: Tensor) -> Tensor:
    """One row of every image, where its sum is largest."""
    row = x.sum((1, 3)).argmax(1)
    return x + x[torch.arange(x.shape[0]), :, row][:, :, None]


def gathered(x: Tensor) -> Tensor:
    """Pixels in the order of one that is computed."""
    order = x.mean(1, keepdim=True).argsort(2).expand(-1, x.shape[1], -1, -1)
    return x.gather(2, order)


def merged_rows(x: Tensor) -> Tensor:
    """Columns in the reverse order, by one index for all channels, which lie on the axis of the batch."""
    merged, size = x.flatten(0, 1), x.shape[2]
    index = torch.arange(size).flip(0)[None, None].expand(1, size, size)
    return merged.gather(2, index.expand(merged.shape[0], size, size)).reshape(x.shape)
