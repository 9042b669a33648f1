"""Normalised widths, on request: what is left is normalised over what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from attention_nets import ATTENTION_NETS
from family_nets import FAMILY_NETS
from nets import rebatch
from oracle import assert_same_function
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.passes.capture import capture
from secateur.passes.gates import insert_gates
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.verify import verify
from secateur.passes.widths import release_widths

STREAMS = {"eager": "embed", "bert": "embed", "gpt2": "wte", "swin": "embed", "convnext": "0", "encoder_layer": "embed"}
"""The group of the normalised stream."""


def double(tree):
    return tree_map(lambda t: t.double() if isinstance(t, Tensor) and t.is_floating_point() else t, tree)


def program_of(name: str) -> tuple[Program, tuple]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, inputs = (ATTENTION_NETS.get(name) or FAMILY_NETS[name])()
    return capture(net.double().eval(), double(inputs)), double(inputs)


@pytest.mark.parametrize("name", STREAMS)
def test_widths_shrink_on_request_alone(name: str) -> None:
    program, inputs = program_of(name)
    assert next(g for g in program.groups if g.name == STREAMS[name]).frozen is not None
    released = release_widths(program)
    stream = next(g for g in released.groups if g.name == STREAMS[name])
    assert stream.frozen is None
    rng = np.random.default_rng(2)
    keep = {g.name: rng.permutation(g.width)[: rng.integers(1, g.width)] for g in released.groups if not g.frozen}
    keep[stream.name] = rng.permutation(stream.width)[:4]
    batches = [double(rebatch(inputs, batch, batch)) for batch in (2, 3)]
    smaller = assert_same_function(released, keep, batches, 1e-8)
    verify(smaller)
    assert next(g for g in smaller.groups if g.name == stream.name).width == 4  # and may shrink again


def test_tied_embeddings_shrink_together() -> None:
    program, _ = program_of("gpt2")
    stream = next(g for g in release_widths(program).groups if g.name == "wte")
    assert {"wte.weight", "wpe.weight", "norm.weight", "blocks.0.c_proj.weight"} <= {m.tensor for m in stream.members}


@pytest.mark.parametrize("name", ["bert", "convnext"])
def test_gates_of_widths_are_their_removal(name: str) -> None:
    program, inputs = program_of(name)
    released = release_widths(program)
    gated = insert_gates(released)
    values, keep = torch.ones(1, gated.units, dtype=torch.float64), {}
    with torch.no_grad():
        gated.source.values = values
        torch.testing.assert_close(gated.module(*inputs), program.module()(*inputs))
        first, width = gated.groups[STREAMS[name]]
        keep[STREAMS[name]] = range(2, width)
        values[0, first : first + 2] = 0
        torch.testing.assert_close(gated.module(*inputs), mask(released, keep).module()(*inputs))


def test_a_saved_program_remembers(tmp_path: Path) -> None:
    program = capture(nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)), torch.randn(2, 3))
    release_widths(program).save(tmp_path / "p")
    assert Program.load(tmp_path / "p").groups[0].frozen is None
    assert program.groups[0].frozen is not None
