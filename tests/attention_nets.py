"""Small transformers, one per way to write attention. `ATTENTION_NETS` maps a name to `(module, example_inputs)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, TOKENS = 12, 3, 5


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, T, heads * E] to [N, heads, T, E]."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


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


class Block(nn.Module):
    """Attention and a two-layer network, both residual after a normalisation."""

    def __init__(self, attention: nn.Module, hidden: int = 16, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = norm(WIDTH), norm(WIDTH), attention
        self.up, self.down = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        x = x + self.attention(self.norm1(x), *more)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Classifier(nn.Module):
    """Blocks between a linear embedding with position and class token, and a linear head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 3)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


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


class RMSNorm(nn.Module):
    """Root mean square normalisation as language models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Conv1D(nn.Module):
    """GPT-2's linear layer: the weight is [inputs, outputs]."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.3 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.addmm(self.bias, x.view(-1, x.shape[-1]), self.weight)
        return out.view(*x.shape[:-1], self.weight.shape[1])


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


class Gpt2Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.c_fc, self.c_out = Conv1D(20, WIDTH), Conv1D(WIDTH, 20)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, HEADS) for part in self.c_attn(self.ln_1(x)).split(WIDTH, 2))
        x = x + self.c_proj(merge_heads(causal(q, k, v)))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class LlamaBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = RMSNorm(WIDTH), RMSNorm(WIDTH)
        self.attention = GroupedQuery("expand")
        self.gate, self.up = nn.Linear(WIDTH, 10, bias=False), nn.Linear(WIDTH, 10, bias=False)
        self.down = nn.Linear(10, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Token and position embeddings, blocks, an output tied to the token embedding."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(17, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, 17, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


class Bert(nn.Module):
    """Post-norm encoder with a padding mask that is the same for all heads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.norm1, self.norm2 = Attention(eager), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.embed(ids))
        bias = (1.0 - mask[:, None, None, :].to(x.dtype)) * -1e4
        x = self.norm1(x + self.attention(x, bias))
        x = self.norm2(x + self.down(F.gelu(self.up(x))))
        return self.head(torch.tanh(x[:, 0]))


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


class Images(nn.Module):
    """Blocks on images [N, 8, 8, WIDTH] between a patch embedding and a head."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed, self.head, self.blocks = nn.Conv2d(3, WIDTH, 2, 2), nn.Linear(WIDTH, 3), nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x).permute(0, 2, 3, 1)).mean((1, 2)))


def _tokens() -> Tensor:
    return torch.randn(2, TOKENS - 1, 4, generator=torch.Generator().manual_seed(7))


def _ids(top: int) -> Tensor:
    return torch.randint(0, top, (2, TOKENS), generator=torch.Generator().manual_seed(5))


def _mask() -> Tensor:
    return torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])


def _classifier(*attention: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (Classifier(*(Block(build()) for build in attention)), (_tokens(),))


ATTENTION_NETS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{
        f.__name__: _classifier(lambda f=f: Attention(f))
        for f in (
            eager, by_einsum, causal, batched, normalised, cross_covariance, linear_attention, rotary,
            rotary_interleaved, rotary_complex,
        )
    },
    **{
        f"fused_{how}": _classifier(lambda how=how: FusedQkv(how))
        for how in ("unbind", "select", "chunk", "split", "heads")
    },
    **{f"gqa_{how}": _classifier(lambda how=how: GroupedQuery(how)) for how in ("kernel", "expand", "repeat")},
    "mha": _classifier(lambda: SelfAttention(False, True)),
    "mha_weights": _classifier(lambda: SelfAttention(True, True), lambda: SelfAttention(True, False)),
    "encoder_layer": lambda: (
        Classifier(nn.TransformerEncoderLayer(WIDTH, HEADS, 16, batch_first=True)), (_tokens(),)
    ),
    "t5_bias": _classifier(T5Attention),
    "partial_rotary": _classifier(PartialRotary),
    "talking_heads": _classifier(TalkingHeads),
    "head_weights": _classifier(HeadWeights),
    "class_attention": lambda: (Classifier(ClassAttention(), Block(FusedQkv("unbind"))), (_tokens(),)),
    "swin": lambda: (
        Images(Block(Window(0)), Block(Window(2))),
        (torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)),),
    ),
    "bert": lambda: (Bert(), (_ids(11), _mask())),
    "gpt2": lambda: (Decoder(Gpt2Block(), Gpt2Block()), (_ids(17),)),
    "llama": lambda: (Decoder(LlamaBlock()), (_ids(17),)),
}  # fmt: skip
"""Every net by name: a function that returns the module and its positional inputs, batch 2 first."""
