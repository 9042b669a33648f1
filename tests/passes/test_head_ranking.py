"""Every ranking method scores heads and neurons; those that contribute nothing cost nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from attention_functions import causal, eager
from attention_layers import Attention, GroupedQuery
from attention_nets import Block, Classifier

from secateur.compress.sensitivity.rank import METHODS, rank
from secateur.passes.capture import capture
from secateur.passes.mask import mask
from secateur.passes.program import Program

WITH_DATA = sorted(set(METHODS) - {"magnitude", "random", "bn-scale"})
DEAD_HEAD, DEAD_NEURON = 1, 4


def transformer(attention: torch.nn.Module) -> Program:
    """A network in which one head and one hidden neuron are never read."""
    torch.manual_seed(0)
    net = Classifier(Block(attention))
    size = attention.out.in_features // (2 if isinstance(attention, GroupedQuery) else 3)
    with torch.no_grad():
        attention.out.weight[:, DEAD_HEAD * size : (DEAD_HEAD + 1) * size] = 0
        net.blocks[0].down.weight[:, DEAD_NEURON] = 0
    return capture(net.eval(), torch.randn(2, 4, 4))


def data() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 4, 4, generator=generator), torch.arange(8) % 3) for _ in range(2)]


NETS = {"eager": lambda: Attention(eager), "kernel": lambda: Attention(causal), "gqa": lambda: GroupedQuery("expand")}


@pytest.mark.parametrize("method", WITH_DATA)
@pytest.mark.parametrize("net", NETS)
def test_what_is_never_read_costs_nothing(net: str, method: str) -> None:
    program = transformer(NETS[net]())
    table = rank(program, data(), F.cross_entropy, method=method, samples=16, probes=4)
    heads = next(g for g in program.groups if g.name.endswith("attention.q"))
    scores = {
        g.name: np.abs(table.groups[g.name].delta_loss)
        for g in (heads, next(g for g in program.groups if g.width == 16))
    }
    for (name, found), dead in zip(scores.items(), (DEAD_HEAD, DEAD_NEURON), strict=True):
        assert np.isfinite(found).all(), name
        assert found[dead] <= 1e-5 * found.max() and found.max() > 0, (name, found)


def test_gate_ggn_orders_heads_as_their_removal_does() -> None:
    """Heads of different weight: the order of the scores is that of what their removal changes."""
    program = transformer(Attention(eager))
    with torch.no_grad():
        weight = program.module().get_parameter("blocks.0.attention.out.weight")
        weight[:, :4] *= 4.0
        weight[:, 8:] *= 0.5
    table = rank(program, data(), F.cross_entropy, method="gate-ggn", samples=16)
    scores = table.groups["blocks.0.attention.q"].delta_loss

    def change(head: int) -> float:
        silenced = mask(program, {"blocks.0.attention.q": [h for h in range(3) if h != head]}).module()
        x = torch.cat([inputs for inputs, _ in data()])
        with torch.no_grad():
            return float((silenced(x).softmax(-1) - program.module()(x).softmax(-1)).square().mean())

    assert list(np.argsort(scores)) == list(np.argsort([change(head) for head in range(3)]))
