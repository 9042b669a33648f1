"""Gates at one compute the program, gates at zero compute `mask`; samples have gates of their own in any layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import NETS, rebatch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.passes.capture import capture
from secateur.passes.gates import Gated, insert_gates
from secateur.passes.mask import mask
from secateur.passes.program import Program


def program_of(name: str) -> Program:
    return capture(*NETS[name]())


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
    program = program_of(name)
    inputs = rebatch(NETS[name]()[1], 3)
    gated = insert_gates(program)
    assert sum(g.width for g in program.groups if g.frozen is None) == gated.units
    keep, values = removal(program, gated, 0)
    with torch.no_grad():
        for gates, other in ((None, program), (torch.ones(1, gated.units), program), (values, mask(program, keep))):
            gated.source.values = gates
            for ours, theirs in zip(call(gated.module, inputs), call(other.module(), inputs), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
