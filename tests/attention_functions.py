"""Attention as functions of queries, keys and values [N, heads, T, size of a head], one per way to write it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, T, heads * E] to [N, heads, T, E]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores + mask
    return torch.matmul(F.dropout(scores.softmax(-1), 0.1, False), v)


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * 0.3
    return torch.einsum("b h i j, b h j d -> b h i d", scores.softmax(-1), v)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads merged into the batch, as in nn.MultiheadAttention."""
    n, heads, tokens, size = q.shape
    q, k, v = (t.reshape(n * heads, tokens, size) for t in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.transpose(1, 2), alpha=0.4)
    return torch.bmm(scores.softmax(-1), v).view(n, heads, tokens, size)


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Normalised queries and keys."""
    return F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.rms_norm(k, k.shape[-1:]), v, scale=1.0)


def cross_covariance(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention between the channels of a head (XCiT)."""
    scores = F.normalize(q, dim=2).transpose(-2, -1) @ F.normalize(k, dim=2)
    return v @ scores.softmax(-1).transpose(-2, -1)


def linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q) (softmax(k)ᵀ v)."""
    return q.softmax(-1) @ (k.softmax(-2).transpose(-2, -1) @ v)


def rotated(x: Tensor) -> Tensor:
    """Rotary embedding, halves (Su et al. 2021)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * 10.0 ** -torch.arange(half)
    cos, sin = (torch.cat([f(angle), f(angle)], -1).to(x.dtype) for f in (torch.cos, torch.sin))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def rotary(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(rotated(q), rotated(k), v)


def interleaved(x: Tensor) -> Tensor:
    angle = torch.arange(x.shape[2])[:, None] * 10.0 ** -torch.arange(x.shape[-1] // 2)
    even, odd = x[..., ::2], x[..., 1::2]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)


def rotary_interleaved(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(interleaved(q), interleaved(k), v)


def rotary_complex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    angle = torch.arange(q.shape[2])[:, None] * 10.0 ** -torch.arange(q.shape[-1] // 2)
    turn = torch.polar(torch.ones_like(angle), angle)

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn).flatten(3).to(x.dtype)

    return F.scaled_dot_product_attention(rotate(q), rotate(k), v)
