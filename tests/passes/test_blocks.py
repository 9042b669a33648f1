"""Residual blocks: which there are, and that dropping one computes what adding zeros for its branch computes."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import graphgen
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from nets import captured, rebatch
from oracle import assert_close, outputs
from torch import Tensor, nn

from secateur.compress.cost.model import CostModel, count
from secateur.compress.implants.apply import rewrite
from secateur.errors import Allowed, UserError
from secateur.passes.blocks import Block, drop_blocks, residual_blocks, silence_blocks
from secateur.passes.capture import capture
from secateur.passes.implant import implantable
from secateur.passes.implant_form import Implant
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.verify import verify


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet_a", ["layer1.0", "layer1.1", "layer2.1"]),  # layer2.0 changes the shape on its shortcut
        ("resnet_b", ["layer1.0", "layer1.1", "layer2.1"]),
        ("preact", ["blocks.0", "blocks.2"]),
        ("mobilenet", ["features.3.conv", "features.5.conv"]),
        ("plain", []),
        ("densenet", []),
    ],
)
def test_blocks_are_found_by_name(name: str, expected: list[str]) -> None:
    program = captured(name)
    assert [block.name for block in residual_blocks(program)] == expected


class Around(nn.Module):
    """A branch, and a way to join it with its input."""

    def __init__(self, join: Callable[[Tensor, Tensor, nn.Module], Tensor], branch: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.branch = branch or nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.join(x, self.branch(x), self.last))


@pytest.mark.parametrize(
    ("join", "blocks"),
    [
        (lambda x, y, _: x + y, 1),
        (lambda x, y, _: y + x, 1),
        (lambda x, y, _: torch.relu(y + x), 1),
        (lambda x, y, _: x + 0.5 * y, 1),
        (lambda x, y, _: 0.5 * x + y, 0),  # the skip is not the identity
        (lambda x, y, _: torch.relu(x) + y, 0),
        (lambda x, y, _: x + y.mean((2, 3), keepdim=True), 0),  # another shape
        (lambda x, y, _: x + y + y.flip(2), 0),  # the branch is read twice
        (lambda x, y, _: torch.add(x, y, alpha=2), 0),
        (lambda x, y, _: x * y, 0),
        (lambda x, y, _: x - y, 0),
    ],
)
def test_a_block_is_an_identity_and_a_branch_that_nothing_else_reads(join: Callable, blocks: int) -> None:
    program = capture(Around(join).eval(), (torch.randn(2, 3, 5, 5),))
    assert len(residual_blocks(program)) == blocks


def test_a_branch_without_layers_is_no_block() -> None:
    program = capture(Around(lambda x, y, _: x + y, nn.ReLU()).eval(), (torch.randn(2, 3, 5, 5),))
    assert residual_blocks(program) == ()


def test_layers_that_are_used_elsewhere_stay() -> None:
    """The branch calls a layer that the rest of the network calls, too: it goes, the layer's weights do not."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.conv, self.own = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.first(x))
            return x + self.own(self.conv(x))

    program = capture(Shared().eval(), (torch.randn(2, 3, 5, 5),))
    (block,) = residual_blocks(program)
    smaller = drop_blocks(program, [block.name])
    assert block.tensors == {"own.weight", "own.bias"}
    dense, saved = count(program), CostModel.of(program, block).dense
    assert count(smaller).params == dense.params - saved.params
    assert count(smaller).macs == dense.macs - saved.macs  # the branch's use of the shared layer is saved as well


def test_an_unknown_block_is_told() -> None:
    program = captured("resnet_a")
    with pytest.raises(UserError, match=r"no residual block is called 'layer1.3'[\s\S]*layer1.0, layer1.1, layer2.1"):
        drop_blocks(program, ["layer1.3"])
    with pytest.raises(UserError, match="this network has none"):
        drop_blocks(captured("plain"), ["layer1.0"])


def test_the_program_given_is_not_changed_and_the_smaller_one_is_saved(tmp_path) -> None:
    program = captured("resnet_b")
    before = str(program.graph)
    smaller = drop_blocks(program, ["layer1.0", "layer2.1"])
    assert str(program.graph) == before and smaller.history[-1] == "drop blocks"
    smaller.save(tmp_path / "p")
    again = Program.load(tmp_path / "p")
    for a, b in zip(outputs(again, program.example_args), outputs(smaller, program.example_args), strict=True):
        assert torch.equal(a, b)
    assert not any("layer1.0" in name or "layer2.1" in name for name, _ in again.module().named_parameters())


class Attention(nn.Module):
    """Self-attention added to its input, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(found))


def test_attention_that_is_dropped_leaves_nothing_behind() -> None:
    """Attention may draw random numbers (its dropout), so it stayed in the graph, unread, with the layers before it."""
    program = capture(Attention().eval(), (torch.randn(2, 5, 8),))
    (block,) = residual_blocks(program)
    smaller = drop_blocks(program, [block.name])
    assert set(dict(smaller.module().named_parameters())) == {"head.weight", "head.bias"}
    assert not smaller.graph.find_nodes(op="call_function", target=torch.ops.aten.scaled_dot_product_attention.default)
    whole, saved = (CostModel.of(program, *given).dense for given in ((), (block,)))
    assert count(smaller).params == whole.params - saved.params == 27


def draw(program: Program, rng: np.random.Generator) -> tuple[list[Block], dict[str, list[int]], dict[str, Implant]]:
    """Some blocks to drop, and removals and implants of a part of the units that do not go with them."""
    blocks = [block for block in residual_blocks(program) if rng.random() < 0.6]
    keep: dict[str, list[int]] = {}
    implants: dict[str, Implant] = {}
    for group in program.groups:
        if group.frozen is not None or group.width < 2 or any(block.holds(group) for block in blocks):
            continue
        units = rng.permutation(group.width).tolist()
        stay = units[: int(rng.integers(1, group.width + 1))]
        if rng.random() < 0.6:
            keep[group.name] = stay
        if rng.random() < 0.3 and isinstance(implantable(program, group, "pointwise"), Allowed):
            implants[group.name] = Implant(tuple(stay[: max(1, len(stay) // 2)]))
    return blocks, keep, implants


def check(net: graphgen.GraphNet, seed: int) -> str:
    """Compares the smaller program with zeros in the place of branches; returns what came of it."""
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    program = capture(net, (example,))
    rng = np.random.default_rng(seed)
    blocks, keep, implants = draw(program, rng)
    if not blocks:
        return "none"
    names = [block.name for block in blocks]
    try:
        made = rewrite(program, keep, implants, names)
    except UserError:
        if not implants:
            raise
        implants = {}  # orders of channels that exclude each other; `test_implant_fuzz` looks at those
        made = rewrite(program, keep, {}, names)
    verify(made.program)
    masked = mask(program, keep, implants=implants)
    silence_blocks(masked, names)
    for batch in (2, 3):
        inputs = (rebatch(example.float(), batch, seed + batch).double(),)
        for actual, expected in zip(outputs(made.program, inputs), outputs(masked, inputs), strict=True):
            assert_close(actual, expected, 1e-9, "output")
    if not implants:
        widths = {name: len(units) for name, units in keep.items()}
        whole, left = CostModel.of(program).cost(widths), count(made.program)
        saved = [CostModel.of(program, block).cost(widths) for block in blocks]
        assert left.params == whole.params - sum(cost.params for cost in saved)
        assert abs(left.macs - whole.macs + sum(cost.macs for cost in saved)) <= len(saved)
    return "same"


def favouring(choose: graphgen.Choose) -> graphgen.Choose:
    """The same choices, but for every second kind of step: that is a residual block."""

    def chosen(options: Sequence[Any]) -> Any:
        return "residual" if "residual" in options and choose([True, False]) else choose(options)

    return chosen


@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_a_dropped_block_equals_zeros_on_random_networks(data: st.DataObject, seed: int) -> None:
    net = graphgen.build(favouring(lambda options: data.draw(st.sampled_from(options))), seed)
    note(str(net))
    check(net, seed)


def tally(seeds: range) -> dict[str, int]:
    found: dict[str, int] = {}
    for seed in seeds:
        net = graphgen.build(favouring(random.Random(seed).choice), seed)
        try:
            result = check(net, seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}\n{net}") from error
        found[result] = found.get(result, 0) + 1
    return found


def test_random_networks_have_blocks() -> None:
    assert tally(range(16))["same"] > 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_dropped_block_equals_zeros_on_a_thousand_random_networks() -> None:
    assert tally(range(1000))["same"] > 200
