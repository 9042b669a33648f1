"""Property: on random networks with random selections, `apply` computes what `mask` computes, gradients too."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import graphgen
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from nets import rebatch
from oracle import assert_same_function, outputs
from torch.fx.node import map_aggregate

from secateur.export.lower import lower
from secateur.export.ort_session import open_session, run
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.shapes import propagate
from secateur.passes.verify import verify


def check(net: graphgen.GraphNet, seed: int, onnx: bool = False) -> int:
    """Compares both ways to remove random units of every group, twice in a row.

    Args:
        net: The network.
        seed: Of inputs and selections.
        onnx: Whether the smaller program is exported too, and compared in onnxruntime.

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
        verify(smaller)
        assert all(size for tensor in smaller.module().state_dict().values() for size in tensor.shape)
        if onnx:
            assert_same_in_onnx(smaller, example)
        second = random_keep(smaller, rng)
        if second:
            assert_same_function(smaller, second, batches[1:], tolerance=1e-9)
    return len(first)


def assert_same_in_onnx(program: Program, example: torch.Tensor) -> None:
    """Exports a program in single precision and compares onnxruntime with torch."""
    program = program.clone()
    program.module().float()
    for node in program.graph.nodes:
        node.args = map_aggregate(node.args, lambda a: torch.float32 if a is torch.float64 else a)
    program.module().recompile()
    single = replace(program, example_args=(example.float(),))
    propagate(single)
    session = open_session(lower(single, ORT_CPU))
    inputs = rebatch(example.float(), 3)
    (name,) = (value.name for value in session.get_inputs())
    for got, expected in zip(run(session, {name: inputs.numpy()}).values(), outputs(single, (inputs,)), strict=True):
        scale = max(1.0, float(expected.detach().abs().max()))
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=0, atol=2e-4 * scale)


def random_keep(program: Program, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random part of every group that can shrink."""
    return {
        group.name: rng.permutation(group.width)[: rng.integers(1, group.width)]
        for group in program.groups
        if group.frozen is None
    }


@pytest.mark.timeout(3600)
@settings(max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_apply_equals_mask_on_random_networks(data: st.DataObject, seed: int) -> None:
    net = graphgen.build(lambda options: data.draw(st.sampled_from(options)), seed)
    note(str(net))
    check(net, seed)


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
def test_apply_equals_mask_on_two_thousand_random_networks() -> None:
    pruned, steps = 0, Counter()
    for seed in range(2000):
        net = graphgen.build(random.Random(seed).choice, seed)
        try:
            groups = check(net, seed, onnx=seed % 20 == 0)
        except Exception as error:
            raise AssertionError(f"seed {seed}\n{net}") from error
        pruned += groups > 0
        steps.update({line.partition(" = ")[2].partition("(")[0] for line in net.log})
    print(f"2000 networks, {pruned} pruned, {len(steps)} kinds of steps: {dict(steps.most_common())}")
    assert pruned > 1800
