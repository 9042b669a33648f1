"""Layers of attention: what computes queries, keys and values, one per way to write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from attention_functions import causal, eager, merge_heads, rotated, split_heads
from torch import Tensor, nn

WIDTH, HEADS, TOKENS = 12, 3, 5


class Attention(nn.Module):
    """Separate projections; the attention itself is a parameter."""

    def __init__(self, attend: Callable[..., Tensor], width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.attend, self.heads = attend, heads

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q, self.k, self.v))
        return self.out(merge_heads(self.attend(q, k, v, *more)))


class FusedQkv(nn.Module):
    """One linear layer for queries, keys and values, as timm's ViT has it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.qkv, self.out, self.how = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), how

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.how == "unbind":
            q, k, v = self.qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        elif self.how == "select":
            qkv = self.qkv(x).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
        elif self.how == "chunk":
            q, k, v = (split_heads(part, HEADS) for part in self.qkv(x).chunk(3, -1))
        elif self.how == "split":
            q, k, v = (split_heads(part, HEADS) for part in self.qkv(x).split(WIDTH, -1))
        else:  # every head's q, k, v side by side, as in GPT-NeoX and Bloom
            q, k, v = (part.transpose(1, 2) for part in self.qkv(x).view(n, t, HEADS, -1).chunk(3, -1))
        return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v)))


class GroupedQuery(nn.Module):
    """Two heads of keys and values for six of queries."""

    def __init__(self, how: str, query: int = 6, key: int = 2, size: int = 4) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(WIDTH, query * size), nn.Linear(query * size, WIDTH, bias=False)
        self.k, self.v = nn.Linear(WIDTH, key * size), nn.Linear(WIDTH, key * size)
        self.query, self.key, self.how = query, key, how

    def forward(self, x: Tensor) -> Tensor:
        q = rotated(split_heads(self.q(x), self.query))
        k, v = rotated(split_heads(self.k(x), self.key)), split_heads(self.v(x), self.key)
        if self.how == "kernel":
            return self.out(merge_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)))
        times = self.query // self.key
        if self.how == "expand":
            n, heads, t, size = k.shape
            k, v = (
                part[:, :, None].expand(n, heads, times, t, size).reshape(n, heads * times, t, size) for part in (k, v)
            )
        else:
            k, v = (part.repeat_interleave(times, 1) for part in (k, v))
        return self.out(merge_heads(eager(q, k, v)))


class Window(nn.Module):
    """Shifted windows with a bias per head and relative position (Swin), on images [N, 8, 8, WIDTH]."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(49, HEADS))
        place = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        offset = (place[:, :, None] - place[:, None]).permute(1, 2, 0) + 3
        self.register_buffer("index", offset[..., 0] * 7 + offset[..., 1])
        self.register_buffer("mask", torch.randn(4, 16, 16))
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        y = torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2))
        y = y.view(n, h // 4, 4, w // 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
        q, k, v = self.qkv(y).reshape(-1, 16, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        scores = (q * 0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        if self.shift:
            scores = scores.view(-1, 4, HEADS, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, HEADS, 16, 16)
        y = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, c))
        y = y.view(n, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, c)
        return x + torch.roll(y, (self.shift, self.shift), (1, 2))


class SelfAttention(nn.Module):
    """torch's own attention."""

    def __init__(self, weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
        self.weights, self.batch_first = weights, batch_first

    def forward(self, x: Tensor) -> Tensor:
        if not self.batch_first:
            x = x.transpose(0, 1)
        x = self.mha(x, x, x, need_weights=self.weights)[0]
        return x if self.batch_first else x.transpose(0, 1)


class PartialRotary(nn.Module):
    """Half of every head is rotated, by frequencies held in a buffer; queries and keys have a scale of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.scale = Attention(self.attend), nn.Parameter(torch.rand(4))
        self.register_buffer("frequencies", torch.rand(1))
        self.register_buffer("offsets", torch.rand(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        angle = torch.arange(q.shape[2])[:, None] * self.frequencies + self.offsets
        q, k = (self.rotate(x * self.scale, angle.cos(), angle.sin()) for x in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned, rest = x[..., :2], x[..., 2:]
        return torch.cat([turned * cos + torch.cat([-turned[..., 1:], turned[..., :1]], -1) * sin, rest], -1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


class T5Attention(nn.Module):
    """A bias per head and distance from an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.bias = Attention(eager), nn.Embedding(9, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1])
        bias = self.bias(place[None] - place[:, None] + 4).permute(2, 0, 1).unsqueeze(0)
        return self.attention(x, bias)


class TalkingHeads(nn.Module):
    """Linear maps between heads, before and after the softmax (Shazeer et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(HEADS, 4), nn.Linear(4, HEADS)
        self.attention = Attention(self.attend)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2) @ v

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


class HeadWeights(nn.Module):
    """Projections to heads as einsums with three-dimensional weights."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v"):
            self.register_parameter(name, nn.Parameter(0.3 * torch.randn(WIDTH, HEADS, 4)))
        self.o = nn.Parameter(0.3 * torch.randn(HEADS, 4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhe->bhte", x, w) for w in (self.q, self.k, self.v))
        return torch.einsum("bhte,hed->btd", causal(q, k, v), self.o)


class ClassAttention(nn.Module):
    """The class token alone asks (CaiT), scaled by a learnt vector."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gamma, self.temperature = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.rand(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q = split_heads(self.q(x[:, :1]), HEADS)
        k, v = self.kv(x).view(x.shape[0], -1, 2, HEADS, 4).permute(2, 0, 3, 1, 4).unbind()
        y = self.out(merge_heads((q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v))
        return torch.cat([x[:, :1] + self.gamma * y, x[:, 1:]], 1)


class Disentangled(nn.Module):
    """Positions of keys relative to queries, gathered by an index that is widened over heads merged into the batch
    (DeBERTa)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.position = Attention(self.attend), nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(1, 2 * TOKENS, WIDTH))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n, heads, tokens, size = q.shape
        q, k, v = (part.reshape(-1, tokens, size) for part in (q, k, v))
        places = split_heads(self.position(self.table), HEADS).reshape(-1, 2 * TOKENS, size).repeat(n, 1, 1)
        place = torch.arange(tokens)
        index = (place[:, None] - place[None] + TOKENS)[None].expand(q.shape[0], tokens, tokens)
        scores = torch.bmm(q, k.transpose(1, 2)) + torch.gather(torch.bmm(q, places.transpose(1, 2)), -1, index)
        return torch.bmm(scores.softmax(-1), v).view(n, heads, tokens, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


class SpanConvolution(nn.Module):
    """A kernel for every head and place, computed from the place, over the values around it (ConvBERT)."""

    def __init__(self, kernel: int = 3) -> None:
        super().__init__()
        self.q, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.kernels, self.kernel = nn.Linear(WIDTH, HEADS * kernel), kernel

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        kernels = self.kernels(torch.tanh(self.q(x))).reshape(-1, self.kernel, 1).softmax(1)
        windows = F.unfold(self.v(x).transpose(1, 2).unsqueeze(-1), (self.kernel, 1), padding=(self.kernel // 2, 0))
        windows = windows.transpose(1, 2).reshape(-1, width // HEADS, self.kernel)
        return self.out((windows @ kernels).reshape(n, tokens, HEADS, -1).flatten(2))
