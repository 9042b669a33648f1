"""Property: on random networks with random implants, `implant` computes what `mask` computes, or is refused."""

from __future__ import annotations

import random

import graphgen
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from nets import rebatch
from oracle import assert_close, outputs

from secateur.errors import Allowed, UserError
from secateur.passes.capture import capture
from secateur.passes.implant import implant, implantable
from secateur.passes.implant_form import FORMS, RANKED, Implant
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.verify import verify


def draw(program: Program, rng: np.random.Generator) -> tuple[dict[str, Implant], dict[str, list[int]]]:
    """Implants for a random part of the units that may have them, and removals of a random part of the others."""
    implants, keep = {}, {}
    forms = list(rng.permutation(FORMS))
    for group in program.groups:
        form = next((str(f) for f in forms if isinstance(implantable(program, group, str(f)), Allowed)), None)
        units = rng.permutation(group.width)
        count = int(rng.integers(1, group.width)) if form and group.width > 1 and rng.random() < 0.7 else 0
        if count and form:
            rank = 1 if form in RANKED else None
            implants[group.name] = Implant(tuple(int(u) for u in units[:count]), form, rank)
        if group.frozen is None and rng.random() < 0.5:
            rest = units[count:]
            stay = rest[: rng.integers(0 if count else 1, len(rest) + 1)]
            keep[group.name] = [int(u) for u in np.concatenate([units[:count], stay])]
    return implants, keep


def check(net: graphgen.GraphNet, seed: int) -> str:
    """Compares implant and mask; returns what came of it."""
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    program = capture(net, (example,))
    rng = np.random.default_rng(seed)
    implants, keep = draw(program, rng)
    if not implants:
        return "none"
    init = str(rng.choice(["center", "zeros"]))
    try:
        made = implant(program, implants, keep=keep, init=init)
    except UserError as error:
        if "no smaller" in error.what or "several forms" in error.what:
            return "dear"
        if len(implants) == 1 and not keep:
            raise AssertionError("a group that may have implants was refused") from error
        return "refused"
    verify(made.program)
    masked = mask(program, keep, implants=implants, init=init)
    for batch in (2, 3):
        inputs = (rebatch(example.float(), batch, seed + batch).double(),)
        for actual, expected in zip(outputs(made.program, inputs), outputs(masked, inputs), strict=True):
            assert_close(actual, expected, 1e-9, "output")
    return "same"


@settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_implant_equals_mask_on_random_networks(data: st.DataObject, seed: int) -> None:
    net = graphgen.build(lambda options: data.draw(st.sampled_from(options)), seed)
    note(str(net))
    check(net, seed)


def tally(seeds: range) -> dict[str, int]:
    found: dict[str, int] = {}
    for seed in seeds:
        net = graphgen.build(random.Random(seed).choice, seed)
        try:
            result = check(net, seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}\n{net}") from error
        found[result] = found.get(result, 0) + 1
    return found


def test_most_random_networks_take_implants() -> None:
    assert tally(range(30))["same"] > 12


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_implant_equals_mask_on_a_thousand_random_networks() -> None:
    assert tally(range(1000))["same"] > 500
