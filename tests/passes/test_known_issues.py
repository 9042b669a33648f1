"""What went wrong in other pruners, by the thread where their users reported it. Networks are written anew.

TP: VainF/Torch-Pruning, nni: microsoft/nni, INC: intel/neural-compressor, OTO: tianyic/only_train_once, MO:
NVIDIA/Model-Optimizer, nncf: openvinotoolkit/nncf, aimet: quic/aimet. What happened between training,
ONNX and runtimes is in `test_known_issues_int8.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_functions import eager
from attention_layers import Attention, FusedQkv, SelfAttention
from attention_nets import Block, Classifier
from family_nets import CrossStage, ShuffleUnit, SimpleGate, conv
from nets import randomise_bn
from oracle import assert_same_function, outputs
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.passes.gates import insert_gates
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.prune import apply
from secateur.passes.verify import verify


class Joined(nn.Module):
    """A function between layers, on images."""

    def __init__(self, call: Any, width: int, *layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.layers = conv(3, 6), nn.ModuleList(layers)
        self.call, self.head = call, nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.stem(x), *self.layers))


class WideDeep(nn.Module):
    """Two branches of features, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.wide, self.last = nn.Linear(5, 3), nn.Linear(7, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape[0], -1)
        return torch.sigmoid(self.last(torch.concat([self.wide(x), self.deep(x)], dim=-1)))


class Generator(nn.Module):
    """A linear layer reshaped to an image, and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.two = (
            nn.Linear(4, 24),
            nn.ConvTranspose2d(6, 5, 4, 2, 1),
            nn.ConvTranspose2d(5, 2, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x)).view(-1, self.one.in_channels, 2, 2)
        return self.two(F.relu(self.one(x)))


class Meta(nn.Module):
    """Images first, tokens later (EfficientFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.block, self.head = conv(3, 6, 3, 2), Meta.Tokens(), nn.Linear(6, 2)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.scale = Attention(eager, 6, 2), nn.Parameter(torch.rand(6))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.scale * self.attention(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


class PooledAttention(nn.Module):
    """Queries and keys pooled by depthwise convolutions, heads merged into the batch (MViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 48), nn.Linear(16, 3)
        self.pools = nn.ModuleList(nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False) for _ in range(3))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        parts = self.qkv(x).reshape(n, 16, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k, v = (self.pool(layer, part) for layer, part in zip(self.pools, parts, strict=True))
        return self.out((F.scaled_dot_product_attention(q, k, v) + q).transpose(1, 2).reshape(n, -1, 16))

    def pool(self, layer: nn.Module, x: Tensor) -> Tensor:
        n, heads, _, size = x.shape
        x = layer(x.reshape(n * heads, 4, 4, size).permute(0, 3, 1, 2))
        return self.norm(x.reshape(n, heads, size, -1).transpose(2, 3))


class Loops(nn.Module):
    """Python loops and assertions on shapes; a position grid made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == x.shape[3], "square images"
        x = F.relu(self.stem(x))
        parts = [x[:, i] * (i + 1) for i in range(0, x.shape[1], 2)] + [x[:, i] for i in range(1, x.shape[1], 2)]
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        grid = torch.stack([rows, columns]).to(x.dtype).expand(x.shape[0], -1, -1, -1)
        return self.head(F.relu(self.mix(torch.cat([torch.stack(parts, 1), grid], 1))))


class Plain(nn.Module):
    """Operations that a winnower of channels does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = conv(3, 6), nn.Conv2d(6, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.sigmoid(self.mix(x * torch.full((1,), 0.5, dtype=x.dtype))) + torch.full_like(x[:, :1], 0.1)
        return self.head(x.transpose(1, 3).mean((1, 2)))


def image(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))


def tokens(batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, 4, generator=torch.Generator().manual_seed(batch))


def split_and_slice(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    """Halves of a concatenation that cut through its parts."""
    x = torch.cat([x, a(x)], 1)
    first, second = x[:, :4], x[:, 4:]
    return torch.cat([b(second), first], 1)


THREADS = {
    "TP#146, concatenation of a value with itself": (lambda: Joined(lambda x: torch.cat([x, x], 1), 12), image),
    "TP#481, concatenated sources are one group": (WideDeep, lambda b=2: torch.randn(b, 5)),
    "TP#415, indices of a concatenation of parts": (lambda: Joined(lambda x, c: c(x), 6, CrossStage(6)), image),
    "TP#73, a split by a residual's width": (
        lambda: Joined(lambda x, c: sum(c(x).split(6, 1), x), 6, nn.Conv2d(6, 12, 1)), image,
    ),
    "TP#203, nni#5416, chunk as a gate (NAFNet)": (
        lambda: Joined(lambda x, a, g, b: x + b(g(a(x))), 6, nn.Conv2d(6, 8, 1), SimpleGate(), nn.Conv2d(4, 6, 1)),
        image,
    ),
    "TP#219, images flattened to tokens": (Meta, image),
    "TP#125, a linear layer reshaped to an image": (Generator, lambda b=2: torch.randn(b, 4)),
    "nni#3548, OTO#39, slices of a concatenation": (
        lambda: Joined(split_and_slice, 9, nn.Conv2d(6, 5, 1), nn.Conv2d(7, 5, 1)), image,
    ),
    "OTO#39, channel shuffle of a grouped network": (
        lambda: Joined(lambda x, c, s: s(c(x)), 8, nn.Conv2d(6, 8, 1, groups=2), ShuffleUnit(8)), image,
    ),
    "nncf#851, nncf#1057, reshape between grouped convolutions": (
        lambda: Joined(
            lambda x, a, b: b(F.relu(a(x)).flatten(2).unflatten(2, (8, 8))), 4,
            nn.Conv2d(6, 8, 3, padding=1, groups=2), nn.Conv2d(8, 4, 1, groups=4),
        ), image,
    ),
    "TP#287, heads merged into the batch of a convolution (MViT)": (
        PooledAttention, lambda b=2: torch.randn(b, 16, 4),
    ),
    "TP#340, TP#393, fused qkv with a fixed number of heads": (lambda: Classifier(Block(FusedQkv("unbind"))), tokens),
    "TP#410, nn.MultiheadAttention": (lambda: Classifier(Block(SelfAttention(False, True))), tokens),
    "TP#411, INC#525, projections with a stale head count": (lambda: Classifier(Block(Attention(eager))), tokens),
    "aimet#964, aimet#4011, full, transpose and sigmoid": (Plain, image),
    "MO#176, MO#506, nni#4885, nni#5471, OTO#45, loops over shapes, grids": (Loops, image),
}  # fmt: skip


def program_of(thread: str) -> Program:
    build, inputs = THREADS[thread]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = randomise_bn(build())
    return capture(net.double(), inputs().double())


def halves(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    free = [g for g in program.groups if g.frozen is None]
    return {g.name: np.sort(rng.permutation(g.width)[: max(1, g.width // 2)]) for g in free}


def gates_are_removal(program: Program, keep: dict[str, np.ndarray], inputs: Tensor) -> None:
    """The gates of removed units at zero compute what masking them computes."""
    gated = insert_gates(program)
    values = torch.ones(1, gated.units, dtype=torch.float64)
    for name, (first, width) in gated.groups.items():
        values[0, first + np.setdiff1d(np.arange(width), keep[name])] = 0
    gated.source.values = values
    with torch.no_grad():
        torch.testing.assert_close(gated.module(inputs), mask(program, keep).module()(inputs))


@pytest.mark.parametrize("thread", THREADS)
def test_thread(thread: str) -> None:
    """Groups are right: removing is silencing, at two batch sizes, and again on what is left."""
    program = program_of(thread)
    inputs = THREADS[thread][1]
    for _ in range(2):  # iterative steps: TP#352, TP#411
        keep = halves(program)
        if not keep:
            break
        gates_are_removal(program, keep, inputs(3).double())
        program = assert_same_function(program, keep, [(inputs(b).double(),) for b in (2, 3)], 1e-9)
        verify(program)
    assert len(program.history) == 3, "pruned twice"


def test_concatenated_sources_are_different_groups() -> None:
    """TP#481."""
    program = program_of("TP#481, concatenated sources are one group")
    assert {g.name: g.width for g in program.groups if not g.frozen} == {"wide": 3, "deep.0": 8, "deep.3": 4}


def test_no_width_becomes_zero() -> None:
    """TP#8: a weight of shape [0, 119, 3, 3]."""
    program = capture(nn.Sequential(conv(3, 6), nn.Conv2d(6, 2, 1)), image())
    with pytest.raises(UserError, match="left without units"):
        apply(program, {"0.0": []})
    for group in capture(nn.Sequential(conv(3, 1), nn.Conv2d(1, 2, 1)), image()).groups:
        assert group.frozen is not None  # one channel alone


def test_nothing_happens_in_silence() -> None:
    """TP#416, nncf#1038, nncf#44, PocketFlow#140: ratios of zero, or masks only, and the same size as before."""
    program = capture(nn.Sequential(conv(3, 6), nn.Conv2d(6, 2, 1)), image())
    with pytest.raises(UserError, match="nothing would be removed"):
        apply(program, {"0.0": range(6)})
    count = sum(p.numel() for p in program.module().parameters())
    smaller = apply(program, {"0.0": range(3)})
    assert sum(p.numel() for p in smaller.module().parameters()) < count
    assert sum(p.numel() for p in mask(program, {"0.0": range(3)}).module().parameters()) == count


def test_a_pruned_network_loads_without_its_classes(tmp_path: Path) -> None:
    """TP#436, nni#3093, yolor#73, ultralytics#16806, Lam1360/YOLOv3-model-pruning#78, #105.

    Saved by pickle, or rebuilt at full size.
    """
    program = program_of("TP#340, TP#393, fused qkv with a fixed number of heads")
    smaller = apply(program, halves(program))
    smaller.save(tmp_path / "small")
    again = Program.load(tmp_path / "small")
    inputs = (tokens(3).double(),)
    for mine, theirs in zip(outputs(again, inputs), outputs(smaller, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert not [path for path in (tmp_path / "small").iterdir() if path.suffix in (".pkl", ".pt")]


def test_statistics_of_batch_norm_follow_their_channels() -> None:
    """jacobgil#26, nni#3093: a batch norm of the wrong width or with the statistics of other channels."""
    program = capture(randomise_bn(nn.Sequential(conv(3, 6), nn.Conv2d(6, 2, 1))), image())
    smaller, before = apply(program, {"0.0": [1, 4]}), program.module().state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(smaller.module().state_dict()[f"0.1.{name}"], before[f"0.1.{name}"][[1, 4]])


def test_the_batch_is_not_fixed_by_an_expand() -> None:
    """rf-detr#376, TensorRT#1915: the batch of the example ends up in a Tile or Reshape."""
    program = program_of("TP#410, nn.MultiheadAttention")
    assert program.static_batch is None
    smaller = apply(program, halves(program))
    for batch in (1, 2, 5):
        assert outputs(smaller, (tokens(batch).double(),))[0].shape == (batch, 3)


def test_coupled_layers_are_one_group_with_all_their_weights() -> None:
    """fasterai#40: residual layers reported as free to remove, since none of them could be removed alone."""
    net = Joined(lambda x, a, b: x + b(F.relu(a(x))), 6, nn.Conv2d(6, 4, 1), nn.Conv2d(4, 6, 1))
    groups = {g.name: g for g in capture(net, image()).groups}
    assert {m.tensor for m in groups["stem.0"].producers} == {"stem.0.weight", "layers.1.weight"}
