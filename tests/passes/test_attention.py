"""Attention in every form: heads and hidden neurons are units, and removing them is silencing them."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_functions import eager
from attention_layers import Attention, GroupedQuery
from attention_nets import ATTENTION_NETS, Block, Classifier
from nets import rebatch
from oracle import assert_same_function
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.passes.capture import capture
from secateur.passes.gates import insert_gates
from secateur.passes.labels.groups import Role
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.verify import verify

SINGLE = ("rotary_complex", "llama")
"""Nets that compute a part in single precision."""

FREE = {
    "eager": {"blocks.0.attention.q": 3, "blocks.0.up": 16},
    "cross_covariance": {"blocks.0.attention.q": 3, "blocks.0.up": 16},
    "fused_unbind": {"blocks.0.attention.qkv": 3, "blocks.0.up": 16},
    "fused_heads": {"blocks.0.attention.qkv": 3, "blocks.0.up": 16},
    "gqa_expand": {"blocks.0.attention.q": 2, "blocks.0.up": 16},
    "gqa_kernel": {"blocks.0.attention.q": 2, "blocks.0.up": 16},
    "mha": {"blocks.0.attention.mha.in_proj": 3, "blocks.0.up": 16},
    "encoder_layer": {"blocks.0.self_attn.in_proj": 3, "blocks.0.linear1": 16},
    "t5_bias": {"blocks.0.attention.bias": 3, "blocks.0.up": 16},
    "disentangled": {"blocks.0.attention.attention.q": 3, "blocks.0.up": 16},
    "span_convolution": {"blocks.0.attention.q": 12, "blocks.0.attention.kernels": 3, "blocks.0.up": 16},
    "talking_heads": {
        "blocks.0.attention.attention.q": 3,
        "blocks.0.attention.attention.v": 3,
        "blocks.0.attention.before": 4,
        "blocks.0.up": 16,
    },
    "head_weights": {"blocks.0.attention": 3, "blocks.0.up": 16},
    "swin": {
        "blocks.0.attention.qkv": 3,
        "blocks.0.up": 16,
        "blocks.1.attention.qkv": 3,
        "blocks.1.up": 16,
    },
    "bert": {"attention.q": 3, "up": 16},
    "gpt2": {"blocks.0.c_attn": 3, "blocks.0.c_fc": 20, "blocks.1.c_attn": 3, "blocks.1.c_fc": 20},
    "llama": {"blocks.0.attention.q": 2, "blocks.0.gate": 10},
}
"""Groups that can shrink, by hand: heads (of keys and values, where queries share them) and hidden neurons."""


def double(tree):
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, tree)


@functools.cache
def _captured(name: str) -> tuple[Program, tuple]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, inputs = ATTENTION_NETS[name]()
    inputs = double(inputs)
    return capture(net.double().eval(), inputs), inputs


def program_of(name: str) -> tuple[Program, tuple]:
    program, inputs = _captured(name)
    return program.clone(), inputs


def free(program: Program) -> dict[str, int]:
    return {g.name: g.width for g in program.groups if g.frozen is None}


@pytest.mark.parametrize("name", ATTENTION_NETS)
def test_heads_and_neurons_can_go(name: str) -> None:
    program, inputs = program_of(name)
    widths = free(program)
    assert widths == FREE.get(name, widths)
    assert any(width in (2, 3) for width in widths.values()), "no heads"
    rng = np.random.default_rng(0)
    keep = {n: rng.permutation(width)[: rng.integers(1, width)] for n, width in widths.items()}
    batches = [double(rebatch(inputs, batch, batch)) for batch in (2, 3)]
    smaller = assert_same_function(program, keep, batches, 1e-5 if name in SINGLE else 1e-9)
    verify(smaller)
    # One head left has values of its own to lose, as any single head; the other groups are what was kept.
    assert {n: len(kept) for n, kept in keep.items() if len(kept) > 1}.items() <= free(smaller).items()


def test_a_head_takes_all_its_slices() -> None:
    program, _ = program_of("eager")
    group = next(g for g in program.groups if g.name == "blocks.0.attention.q")
    found = {(m.tensor.removeprefix("blocks.0.attention."), m.axis): m for m in group.members}
    assert set(found) == {(f"{n}.{t}", 0) for n in "qkv" for t in ("weight", "bias")} | {("out.weight", 1)}
    for member in found.values():
        assert np.array_equal(member.index, np.arange(12).reshape(3, 4))
    assert found["out.weight", 1].role is Role.CONSUME


def test_a_fused_layer_gives_a_head_three_slices() -> None:
    program, _ = program_of("fused_unbind")
    group = next(g for g in program.groups if g.name == "blocks.0.attention.qkv")
    member = next(m for m in group.members if m.tensor.endswith("qkv.weight"))
    blocks = np.arange(36).reshape(3, 3, 4)  # q, k, v; heads; sizes
    assert np.array_equal(member.index, blocks.transpose(1, 0, 2).reshape(3, 12))


def test_grouped_queries_go_with_their_keys() -> None:
    program, _ = program_of("gqa_kernel")
    group = next(g for g in program.groups if g.name == "blocks.0.attention.q")
    counts = {m.tensor.split(".")[3]: m.index.shape[1] for m in group.members}
    assert counts == {"q": 12, "k": 4, "v": 4, "out": 12}  # 3 heads of size 4; 1; 1; 3


def test_a_single_head_keeps_its_queries_but_not_its_values() -> None:
    program = capture(Classifier(Block(Attention(eager, heads=1))), torch.randn(2, 4, 4))
    frozen = {g.name: g.frozen for g in program.groups}
    refused = frozen["blocks.0.attention.q"]
    assert refused is not None and refused.reason == "aten.matmul sums over its channels"
    assert "blocks.0.attention" in refused.where and "attention_layers.py:" in refused.where
    assert frozen["blocks.0.attention.v"] is None
    assert_same_function(program, {"blocks.0.attention.v": [1, 5, 7]}, [(torch.randn(3, 4, 4),)])


def test_one_key_for_all_queries() -> None:
    """Multi-query attention: the only key cannot go; what the kernel does not tie may."""
    program = capture(Classifier(Block(GroupedQuery("kernel", query=4, key=1))), torch.randn(2, 4, 4))
    by_name = {g.name: g for g in program.groups}
    assert by_name["blocks.0.attention.k"].frozen is not None
    keep = {n: range(1, width) for n, width in free(program).items()}
    verify(assert_same_function(program, keep, [(torch.randn(3, 4, 4),)]))


def test_labels_after_a_norm_are_still_those_channels() -> None:
    """What is added to a normalised stream is frozen for the reason of the stream."""
    program, _ = program_of("bert")
    stream = next(g for g in program.groups if g.name == "embed")
    assert stream.frozen is not None and stream.frozen.reason == "LayerNorm averages over its channels"
    assert {m.tensor for m in stream.producers} == {"embed.weight", "attention.out.weight", "down.weight"}


class Pooler(nn.Module):
    """Tokens picked by an index that is computed, as a text encoder picks the end of its text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.project, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.project(self.embed(ids))
        end = ids.argmax(-1)
        first = x[torch.arange(x.shape[0]), end]
        second = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        return self.head(F.relu(first + second))


def test_computed_indices_leave_other_axes_alone() -> None:
    program = capture(Pooler(), torch.randint(0, 9, (2, 5)))
    assert free(program) == {"embed": 6, "project": 8}
    keep = {"embed": [0, 4], "project": [1, 2, 7]}
    verify(assert_same_function(program, keep, [(torch.randint(0, 9, (3, 5)),)]))


# Gates on heads and neurons.

GATED = ("eager", "batched", "fused_unbind", "gqa_expand", "mha_weights", "talking_heads", "head_weights", "gpt2")


@pytest.mark.parametrize("name", GATED)
def test_gates_of_heads_are_their_removal(name: str) -> None:
    program, inputs = program_of(name)
    gated = insert_gates(program)
    assert gated.units == sum(free(program).values())
    inputs = double(rebatch(inputs, 3))
    for seed in range(2):
        rng = np.random.default_rng(seed)
        values, keep = torch.ones(1, gated.units, dtype=torch.float64), {}
        for group, (first, width) in gated.groups.items():
            lost = rng.choice(width, rng.integers(1, width), replace=False)
            keep[group] = np.setdiff1d(np.arange(width), lost)
            values[0, first + lost] = 0
        gated.source.values = values
        with torch.no_grad():
            torch.testing.assert_close(gated.module(*inputs), mask(program, keep).module()(*inputs))


@pytest.mark.parametrize("name", ["eager", "gqa_expand", "gpt2"])
def test_derivatives_of_gates_against_brute_force(name: str) -> None:
    """Per unit: the derivative of every output is what scaling the weights that read the unit does."""
    program, inputs = program_of(name)
    gated = insert_gates(program)
    project = torch.randn(program.run_example().shape, generator=torch.Generator().manual_seed(1)).double()

    def loss(module: nn.Module) -> Tensor:
        return (module(*inputs) * project).sum()

    gates = torch.ones(1, gated.units, dtype=torch.float64, requires_grad=True)
    gated.source.values = gates
    (gradient,) = torch.autograd.grad(loss(gated.module), gates)
    step, reads = 1e-5, program.analysis.reads
    for group in program.groups:
        if group.frozen is not None:
            continue
        first = gated.groups[group.name][0]
        for unit in (0, group.width - 1):
            shifted = []
            for sign in (1, -1):
                other = program.clone()
                tensors = dict(other.module().named_parameters())
                with torch.no_grad():
                    for m in group.members:
                        if (m.tensor, m.axis) in reads:
                            part = tensors[m.tensor].movedim(m.axis, 0)
                            part[m.index[unit]] *= 1 + sign * step
                    shifted.append(loss(other.module()))
            expected = (shifted[0] - shifted[1]) / (2 * step)
            torch.testing.assert_close(gradient[0, first + unit], expected, rtol=1e-5, atol=1e-7)


def test_every_sample_has_gates_of_its_own() -> None:
    program, inputs = program_of("mha")
    gated = insert_gates(program)
    assert gated.refused is None
    values = torch.rand(2, gated.units, dtype=torch.float64)
    gated.source.values = values
    together = gated.module(*inputs)
    for sample in range(2):
        gated.source.values = values[sample : sample + 1]
        alone = gated.module(*(x[sample : sample + 1] for x in inputs))
        torch.testing.assert_close(together[sample : sample + 1], alone)


def test_heads_go_whatever_the_length_of_the_sequence() -> None:
    torch.manual_seed(0)
    net, (ids, mask_) = ATTENTION_NETS["bert"]()
    program = capture(net.double().eval(), (ids, mask_), dynamic={"ids": [1], "mask": [1]})
    keep = {"attention.q": [0, 2], "up": [1, 3, 8]}
    batches = [(torch.randint(0, 11, (b, t)), torch.ones(b, t, dtype=torch.int64)) for b, t in ((2, 5), (3, 7), (1, 2))]
    verify(assert_same_function(program, keep, batches, 1e-9))
