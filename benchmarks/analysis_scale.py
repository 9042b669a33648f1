"""How long labels and groups of large networks take, and how much memory: no weights, shapes alone.

    python benchmarks/analysis_scale.py                 # all, each in a process of its own
    python benchmarks/analysis_scale.py --only decoder_7b

Limits: 60 s and 4 GB for each network, capture included. On one core of an EPYC (Zen 5), torch 2.13, with starting
Python and importing torch in the seconds of the processor:

| network | parameters | nodes | groups that can shrink | units | processor | peak memory |
|---|---|---|---|---|---|---|
| resnet152 | 60 M | 517 | 105 of 106 | 27840 | 9.9 s | 0.37 GB |
| vit_l | 304 M | 447 | 48 of 50 | 98688 | 8.8 s | 0.39 GB |
| decoder_7b | 7,242 M | 1814 | 64 of 66 | 459008 | 18.8 s | 0.51 GB |
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SECONDS, GIGABYTES = 60.0, 4.0


class Bottleneck(nn.Module):
    """ResNet's block (He et al. 2016)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in sizes)
        short = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
        self.short = nn.Sequential(short, nn.BatchNorm2d(4 * width)) if inputs != 4 * width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W]."""
        y = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = F.relu(y) if number < 2 else y
        return F.relu(y + self.short(x))


def resnet(blocks: tuple[int, ...]) -> nn.Module:
    """A ResNet of bottlenecks."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for stage, count in enumerate(blocks):
        for number in range(count):
            layers.append(Bottleneck(inputs, 64 * 2**stage, 2 if stage and not number else 1))
            inputs = 256 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class EncoderBlock(nn.Module):
    """ViT's block (Dosovitskiy et al. 2021), with one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width]."""
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of 16 pixels, a class token, position embeddings."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, width, 16, 16), nn.Linear(width, 1000)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 197, width))
        self.blocks, self.norm = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth))), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, 224, 224]."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class Normalise(nn.Module):
    """RMS normalisation, as decoders write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, width]."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class DecoderBlock(nn.Module):
    """Grouped queries, rotary positions, gated hidden layer (Touvron et al. 2023)."""

    def __init__(self, width: int, heads: int, keys: int, hidden: int) -> None:
        super().__init__()
        size = width // heads
        self.norm1, self.norm2, self.size, self.times = Normalise(width), Normalise(width), size, heads // keys
        self.q, self.o = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k, self.v = (nn.Linear(width, keys * size, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, T, width]; cosines and sines [T, size of a head]."""
        n, t, _ = x.shape
        y = self.norm1(x)
        q, k, v = (layer(y).view(n, t, -1, self.size).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (z * cos + torch.cat([-z[..., self.size // 2 :], z[..., : self.size // 2]], -1) * sin for z in (q, k))
        k, v = (z[:, :, None].expand(-1, -1, self.times, -1, -1).reshape(n, -1, t, self.size) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(n, t, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Token ids in, logits out."""

    def __init__(self, width: int, heads: int, keys: int, hidden: int, depth: int, vocabulary: int) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(vocabulary, width), Normalise(width)
        self.blocks = nn.ModuleList(DecoderBlock(width, heads, keys, hidden) for _ in range(depth))
        self.head, self.size = nn.Linear(width, vocabulary, bias=False), width // heads

    def forward(self, ids: Tensor) -> Tensor:
        """[N, T]."""
        x = self.embed(ids)
        angle = torch.arange(ids.shape[1], device=x.device)[:, None] * 10000.0 ** -torch.linspace(
            0, 1, self.size // 2, device=x.device
        )
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def _image() -> Tensor:
    return torch.zeros(2, 3, 224, 224)


def _ids() -> Tensor:
    return torch.zeros(2, 128, dtype=torch.int64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "resnet152": (lambda: resnet((3, 8, 36, 3)), _image),
    "vit_l": (lambda: VisionTransformer(1024, 16, 24), _image),
    "decoder_7b": (lambda: Decoder(4096, 32, 8, 14336, 32, 32000), _ids),
}


def measure(name: str) -> dict[str, Any]:
    """Seconds, memory and size of the analysis of one network, in this process."""
    from secateur.passes.weightless import capture_structure

    build, inputs = NETWORKS[name]
    start = time.perf_counter()
    with torch.device("meta"):
        model = build().eval()
        example = inputs()
    program = capture_structure(model, example)
    captured = time.perf_counter()
    groups = program.groups
    free = [group for group in groups if group.frozen is None]
    return {
        "network": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "nodes": len(program.graph.nodes),
        "groups": len(groups),
        "prunable_groups": len(free),
        "prunable_units": sum(group.width for group in free),
        "capture_s": round(captured - start, 2),
        "labels_s": round(time.perf_counter() - captured, 2),
        "cpu_s": round(time.process_time(), 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints a table; 1 if a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NETWORKS, help="one network, in this process, as JSON")
    options = parser.parse_args(arguments)
    if options.only:
        print(json.dumps(measure(options.only)))
        return 0
    print(
        "| network | parameters | nodes | groups that can shrink | units | capture | labels | processor | peak memory |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    worst = 0
    for name in NETWORKS:
        done = subprocess.run([sys.executable, __file__, "--only", name], capture_output=True, text=True, check=True)
        row = json.loads(done.stdout)
        worst |= row["capture_s"] + row["labels_s"] > SECONDS or row["peak_gb"] > GIGABYTES
        cells = [
            name,
            f"{row['parameters'] / 1e6:,.0f} M",
            str(row["nodes"]),
            f"{row['prunable_groups']} of {row['groups']}",
            str(row["prunable_units"]),
            f"{row['capture_s']:.1f} s",
            f"{row['labels_s']:.1f} s",
            f"{row['cpu_s']:.1f} s",
            f"{row['peak_gb']:.2f} GB",
        ]
        print(f"| {' | '.join(cells)} |")
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
