"""Property: on random networks with random selections, `apply` computes what `mask` computes, gradients too."""

from __future__ import annotations

import random

import graphgen
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from nets import rebatch
from oracle import assert_same_function

from secateur.passes.capture import capture
from secateur.passes.program import Program


def check(net: graphgen.GraphNet, seed: int) -> int:
    """Compares both ways to remove random units of every group, twice in a row.

    Returns:
        How many groups lost units the first time.
    """
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    program = capture(net, (example,))
    rng = np.random.default_rng(seed)
    batches = [(rebatch(example.float(), batch, seed + batch).double(),) for batch in (2, 3)]
    first = random_keep(program, rng)
    if first:
        smaller = assert_same_function(program, first, batches, tolerance=1e-9)
        second = random_keep(smaller, rng)
        if second:
            assert_same_function(smaller, second, batches[1:], tolerance=1e-9)
    return len(first)


def random_keep(program: Program, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random part of every group that can shrink."""
    return {
        group.name: rng.permutation(group.width)[: rng.integers(1, group.width)]
        for group in program.groups
        if group.frozen is None
    }


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_apply_equals_mask_on_random_networks(data: st.DataObject, seed: int) -> None:
    net = graphgen.build(lambda options: data.draw(st.sampled_from(options)), seed)
    note(str(net))
    check(net, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_apply_equals_mask_on_a_thousand_random_networks() -> None:
    pruned = 0
    for seed in range(1000):
        net = graphgen.build(random.Random(seed).choice, seed)
        try:
            pruned += check(net, seed) > 0
        except Exception as error:
            raise AssertionError(f"seed {seed}\n{net}") from error
    assert pruned > 900
