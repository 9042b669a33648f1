"""Small transformers, one per way to write attention. `ATTENTION_NETS` maps a name to `(module, example_inputs)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from attention_functions import (
    batched,
    by_einsum,
    causal,
    cross_covariance,
    eager,
    linear_attention,
    merge_heads,
    normalised,
    rotary,
    rotary_complex,
    rotary_interleaved,
    split_heads,
)
from attention_layers import (
    HEADS,
    TOKENS,
    WIDTH,
    Attention,
    ClassAttention,
    Disentangled,
    FusedQkv,
    GroupedQuery,
    HeadWeights,
    PartialRotary,
    SelfAttention,
    SpanConvolution,
    T5Attention,
    TalkingHeads,
    Window,
)
from torch import Tensor, nn


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
    "disentangled": _classifier(Disentangled),
    "span_convolution": _classifier(SpanConvolution),
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
