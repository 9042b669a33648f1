"""Gates at one compute the program, gates at zero compute `mask`; samples have gates of their own in any layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS, captured, rebatch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from secateur.errors import Refused, UnsupportedError
from secateur.passes.capture import capture
from secateur.passes.gates import Gate, Gated, insert_gates
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.sample_axis import SampleAxis


def call(module: nn.Module, inputs: Any) -> list[Tensor]:
    out = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def removal(program: Program, gated: Gated, seed: int) -> tuple[dict[str, list[int]], Tensor]:
    """Random units of every group to keep, and the gates that say the same."""
    rng = np.random.default_rng(seed)
    values = torch.ones(1, gated.units)
    keep = {}
    for group in program.groups:
        if group.frozen is None:
            lost = rng.choice(group.width, rng.integers(1, group.width), replace=False)
            keep[group.name] = sorted(set(range(group.width)) - set(lost.tolist()))
            values[0, gated.groups[group.name][0] + lost] = 0
    return keep, values


@pytest.mark.parametrize("name", NETS)
def test_gates_are_removal(name: str) -> None:
    program = captured(name)
    inputs = rebatch(NETS[name]()[1], 3)
    gated = insert_gates(program)
    assert sum(g.width for g in program.groups if g.frozen is None) == gated.units
    keep, values = removal(program, gated, 0)
    with torch.no_grad():
        for gates, other in ((None, program), (torch.ones(1, gated.units), program), (values, mask(program, keep))):
            gated.source.values = gates
            for ours, theirs in zip(call(gated.module, inputs), call(other.module(), inputs), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


class Layout(nn.Module):
    """An MLP on tokens [samples, tokens, features], computed in some layout of its axes."""

    def __init__(self, way: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        self.way, self.back = way, back

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.back(self.down(F.relu(self.up(self.way(x)))))).mean(1))


class Attention(nn.Module):
    """A transformer block with `F.scaled_dot_product_attention`, its stream of fixed width."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.down(F.gelu(self.up(self.norm2(x))))).mean(1))


class Encoder(nn.Module):
    """torch's own encoder layer, with the batch on axis 1 inside of its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).mean(0))


def to_windows(x: Tensor) -> Tensor:
    """[samples, 4 tokens, C] seen as an image of 2 x 2, in windows of 1 x 2: [samples * 2, 2, C]."""
    return x.unflatten(1, (2, 1, 1, 2)).transpose(2, 3).flatten(0, 2).flatten(1, 2)


def far_windows(x: Tensor) -> Tensor:
    """Windows before samples: [2 * samples, 2, C]."""
    return x.unflatten(1, (2, 2)).transpose(0, 1).flatten(0, 1)


def between(x: Tensor) -> Tensor:
    """Samples between two kinds of positions: [2 * samples * 2, C]."""
    return x.unflatten(1, (2, 2)).transpose(0, 1).flatten(0, 2)


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], SampleAxis]] = {
    "(B, T, C)": (lambda: Layout(lambda x: x, lambda x: x), SampleAxis(0)),
    "(T, B, C)": (lambda: Layout(lambda x: x.transpose(0, 1), lambda x: x.transpose(0, 1)), SampleAxis(1)),
    "(B T, C)": (lambda: Layout(lambda x: x.flatten(0, 1), lambda x: x.unflatten(0, (-1, 4))), SampleAxis(0, 1, 4)),
    "(T B, C)": (
        lambda: Layout(lambda x: x.transpose(0, 1).flatten(0, 1), lambda x: x.unflatten(0, (4, -1)).transpose(0, 1)),
        SampleAxis(0, 4, 1),
    ),
    "(B W, T, C)": (lambda: Layout(to_windows, lambda x: x.unflatten(0, (-1, 2)).flatten(1, 2)), SampleAxis(0, 1, 2)),
    "(W B, T, C)": (
        lambda: Layout(far_windows, lambda x: x.unflatten(0, (2, -1)).transpose(0, 1).flatten(1, 2)),
        SampleAxis(0, 2, 1),
    ),
    "(W B T, C)": (
        lambda: Layout(between, lambda x: x.unflatten(0, (2, -1, 2)).transpose(0, 1).flatten(1, 2)),
        SampleAxis(0, 2, 2),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_samples_are_found_in_any_layout(name: str) -> None:
    build, layout = LAYOUTS[name]
    gated = insert_gates(capture(build().eval(), torch.randn(2, 4, 4)))
    assert gated.refused is None
    assert next(m.samples for m in gated.module.modules() if isinstance(m, Gate)) == layout
    assert gated.outputs == (SampleAxis(0),)


def per_sample(program: Program, inputs: Any) -> tuple[Tensor, Tensor]:
    """Gradients [samples, units] of a random projection of the outputs, at once and one sample after the other."""
    gated = insert_gates(program)
    assert gated.refused is None and gated.units

    def gradient(inputs: Any, weights: list[Tensor]) -> Tensor:
        gates = torch.ones(len(tree_leaves(inputs)[0]), gated.units, dtype=torch.float64, requires_grad=True)
        gated.source.values = gates
        out = call(gated.module, inputs)
        (found,) = torch.autograd.grad(sum((o * w).sum() for o, w in zip(out, weights, strict=True)), gates)
        return found

    weights = [torch.randn_like(o) for o in call(program.module(), inputs)]
    count = len(tree_leaves(inputs)[0])
    single = [
        gradient(tree_map(lambda t, i=i: t[i : i + 1], inputs), [w[i : i + 1] for w in weights]) for i in range(count)
    ]
    return gradient(inputs, weights), torch.cat(single)


def in_float64(inputs: Any) -> Any:
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, inputs)


@pytest.mark.parametrize("name", [*LAYOUTS, "attention", "encoder"])
def test_gradients_of_single_samples_in_layouts(name: str) -> None:
    torch.manual_seed(0)
    others: dict[str, tuple[Callable[[], nn.Module], int]] = {"attention": (Attention, 8), "encoder": (Encoder, 8)}
    build, features = others[name] if name in others else (LAYOUTS[name][0], 4)
    program = capture(build().double().eval(), torch.randn(2, 4, features).double())
    together, alone = per_sample(program, (torch.randn(5, 4, features).double(),))
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-12)
    assert bool(together.any(0).all())


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("transposed", "two_inputs", "embedder")])
def test_gradients_of_single_samples(name: str) -> None:
    model, inputs = NETS[name]()
    program = capture(model.double(), in_float64(inputs))
    together, alone = per_sample(program, in_float64(rebatch(inputs, 4)))
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-10)


def test_a_fixed_batch_has_its_samples_found_too() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(torch.tanh(self.up(x.reshape(12, 4)))).reshape(3, 4, 3).mean(1)

    program = capture(Fixed().eval(), torch.randn(3, 4, 4))
    assert program.static_batch is not None
    gated = insert_gates(program)
    assert [m.samples for m in gated.module.modules() if isinstance(m, Gate)] == [SampleAxis(0, 1, 4)]


class Mixing(nn.Module):
    """Subtracts the mean over the batch, in front of the gated value or behind it."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.up, self.down, self.early = nn.Linear(4, 6), nn.Linear(6, 3), early

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.up(x))
        if self.early:
            return self.down(hidden - hidden.mean(0))
        out = self.down(hidden)
        return out - out.mean(0)


class Queries(nn.Module):
    """Learned queries, the same for every sample, through a layer of their own."""

    def __init__(self, expand: bool) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 4))
        self.up, self.down, self.key, self.expand = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(5, 2), expand

    def forward(self, x: Tensor) -> Tensor:
        queries = self.queries.expand(x.shape[0], 3, 4) if self.expand else self.queries
        return self.down(torch.tanh(self.up(queries))) + self.key(x)[:, None]


def test_values_that_mix_samples_are_refused() -> None:
    gated = insert_gates(capture(Mixing(early=True).eval(), torch.randn(2, 4)))
    assert gated.refused is not None and "mixes the samples" in gated.refused.reason
    gated.source.values = torch.ones(1, gated.units)
    assert gated.module(torch.randn(3, 4)).shape == (3, 3)
    gated.source.values = torch.ones(3, gated.units)
    with pytest.raises(UnsupportedError, match="mixes the samples"):
        gated.module(torch.randn(3, 4))
    late = insert_gates(capture(Mixing(early=False).eval(), torch.randn(2, 4)))
    assert late.refused is None and isinstance(late.outputs[0], Refused)


def test_values_without_samples() -> None:
    torch.manual_seed(0)
    shared = insert_gates(capture(Queries(expand=False).eval(), torch.randn(2, 5)))
    assert shared.refused is not None and "same for every sample" in shared.refused.reason
    program = capture(Queries(expand=True).double().eval(), torch.randn(2, 5).double())
    together, alone = per_sample(program, (torch.randn(3, 5).double(),))
    torch.testing.assert_close(together, alone)


def test_integer_inputs_all_zero() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up, self.down = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.down(torch.tanh(self.up(self.embed(ids).flatten(0, 1)))).unflatten(0, (-1, 5)).mean(1)

    gated = insert_gates(capture(Words().eval(), torch.zeros(2, 5, dtype=torch.int64)))
    assert [m.samples for m in gated.module.modules() if isinstance(m, Gate)] == 2 * [SampleAxis(0, 1, 5)]


def test_one_gate_for_all_layers_that_read_a_value() -> None:
    program = captured("shared")
    gated = insert_gates(program)
    gates = [n for n in gated.module.graph.nodes if n.op == "call_module" and str(n.target).startswith("gate_")]
    assert len({n.args[0] for n in gates}) == len(gates)
