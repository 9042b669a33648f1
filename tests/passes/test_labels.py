"""Groups as derived by hand, their members, and what every net of the zoo does when they shrink."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS, captured, rebatch
from oracle import assert_same_function
from torch import Tensor, nn

from secateur.passes.capture import capture
from secateur.passes.labels.analysis import analyse
from secateur.passes.labels.groups import Role
from secateur.passes.labels.rule import Rule, with_rule
from secateur.passes.labels.table import RULES
from secateur.passes.labels.values import Labels
from secateur.passes.labels.widths import axis_terms
from secateur.passes.program import Program

OUTPUT = "it is an output of the network"

EXPECTED = {
    "plain": {"0": 8, "4": 12, "10": 20, "12": OUTPUT},
    "resnet_a": {
        "conv1": 8,
        "layer1.0.conv1": 8,
        "layer1.1.conv1": 8,
        "layer2.0.conv1": 16,
        "layer2.0.conv2": 8,
        "layer2.1.conv1": 16,
        "linear": OUTPUT,
    },
    "resnet_b": {
        "conv1": 8,
        "layer1.0.conv1": 8,
        "layer1.1.conv1": 8,
        "layer2.0.conv1": 16,
        "layer2.0.conv2": 16,
        "layer2.1.conv1": 16,
        "linear": OUTPUT,
    },
    "mobilenet": {
        "features.0": 8,
        "features.3.conv.0": 16,
        "features.4.conv.0": 24,
        "features.4.conv.6": 12,
        "features.5.conv.0": 36,
        "classifier.1": OUTPUT,
    },
    # Four groups of convolution: position p of every group is one unit, on both sides.
    "resnext": {"0": 8, "3.conv1": 4, "3.conv2": 4, "4.conv1": 4, "4.conv2": 4, "7": OUTPUT},
    "shared": {"stem": 8, "fc": OUTPUT},
    "shared_kernel": {"conv": 6, "fc": OUTPUT},
    "keyword_input": {"conv": OUTPUT, "features": 8, "fc": OUTPUT},
    # Three groups of normalisation: each one is a unit.
    "embedder": {"embed": "LayerNorm averages over its channels", "mix": 3, "fc": OUTPUT},
}


def random_keep(program: Program, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    free = (group for group in program.groups if group.frozen is None)
    return {group.name: rng.permutation(group.width)[: rng.integers(1, group.width)] for group in free}


@pytest.mark.parametrize("name", EXPECTED)
def test_groups_are_those_derived_by_hand(name: str) -> None:
    groups = captured(name).groups
    assert {g.name: g.width if g.frozen is None else g.frozen.reason for g in groups} == EXPECTED[name]


@pytest.mark.parametrize("name", NETS)
def test_apply_equals_mask(name: str) -> None:
    _, inputs = NETS[name]()
    program = captured(name)
    for seed in range(2):
        keep = random_keep(program, seed)
        if keep:
            assert_same_function(program, keep, [rebatch(inputs, batch, batch) for batch in (2, 5)])


@pytest.mark.parametrize("name", NETS)
def test_every_position_belongs_to_one_unit_at_most(name: str) -> None:
    program = captured(name)
    seen: dict[tuple[str, int], np.ndarray] = {}
    tensors = dict(program.module().state_dict())
    for group in program.groups:
        assert group.producers
        for member in group.members:
            size = tensors[member.tensor].shape[member.axis]
            count = seen.setdefault((member.tensor, member.axis), np.zeros(size, dtype=int))
            assert member.index.shape[0] == group.width
            np.add.at(count, member.index.reshape(-1), 1)
    assert all(count.max() == 1 for count in seen.values())


class Stages(nn.Module):
    """Three stages of widths 4, 6, 10, joined by pad-and-slice shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.two = nn.Conv2d(4, 6, 3, 2, 1)
        self.three = nn.Conv2d(6, 10, 3, 2, 1)
        self.fc = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.two(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)))
        x = F.relu(self.three(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3)))
        return self.fc(x.mean((2, 3)))


def test_option_a_shortcuts_give_one_group_for_every_set_of_stages() -> None:
    program = capture(Stages(), torch.randn(2, 3, 8, 8))
    groups = {g.name: g for g in program.groups}
    assert {n: g.width for n, g in groups.items() if not g.frozen} == {"stem": 4, "two": 2, "three": 4}
    index = {(m.tensor, m.axis): m.index[:, 0].tolist() for m in groups["stem"].members}
    assert index["stem.weight", 0] == [0, 1, 2, 3]
    assert index["two.weight", 0] == [1, 2, 3, 4]
    assert index["three.weight", 0] == [2, 3, 4, 5]
    assert {m.tensor: m.index[:, 0].tolist() for m in groups["two"].producers} == {
        "two.weight": [0, 5],
        "three.weight": [1, 6],
    }
    smaller = assert_same_function(program, {"stem": [1, 3], "two": [1], "three": [0, 3]}, [(torch.randn(3, 3, 8, 8),)])
    pads = [node.args[1] for node in smaller.graph.nodes if str(node.target) == "aten.pad.default"]
    assert pads == [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 1]]


def test_flatten_gives_every_unit_a_block_of_the_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4 * 9, 2))
    group = capture(net, torch.randn(2, 3, 3, 3)).groups[0]
    member = next(m for m in group.members if m.role is Role.CONSUME)
    assert np.array_equal(member.index, np.arange(36).reshape(4, 9))


def test_depthwise_weights_are_producers() -> None:
    program = captured("mobilenet")
    group = next(g for g in program.groups if g.name == "features.3.conv.0")
    assert [m.tensor for m in group.producers] == ["features.3.conv.0.weight", "features.3.conv.3.weight"]


def test_reasons_name_the_layer_and_the_source_line() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.cumsum(self.conv(x), 1).mean((2, 3)))

    group = capture(Net(), torch.randn(2, 3, 3, 3)).groups[0]
    assert group.frozen is not None
    assert group.frozen.reason == "aten.cumsum runs over its channels"
    assert "test_labels.py:" in group.frozen.where


class Unknown(nn.Module):
    """An operation without a rule between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(torch.special.bessel_j0(self.conv(x)))
        return self.fc(F.relu(x).mean((2, 3)))


def test_an_operation_without_a_rule_freezes_only_what_it_touches() -> None:
    groups = {g.name: g for g in capture(Unknown(), torch.randn(2, 3, 3, 3)).groups}
    assert groups["conv"].frozen is not None
    assert groups["conv"].frozen.reason == "no rule for aten.special_bessel_j0"
    assert "register_rule" in groups["conv"].frozen.hint
    assert groups["after"].frozen is None


def test_a_registered_rule_is_used_and_leaves_the_table_alone() -> None:
    def flow(flow, node) -> Labels:
        return flow.labels(node.args[0])

    rules = with_rule(RULES, "aten.special_bessel_j0", Rule(flow))
    program = capture(Unknown(), torch.randn(2, 3, 3, 3))
    assert "aten.special_bessel_j0" not in RULES
    assert analyse(program, rules).groups[0].frozen is None
    assert program.groups[0].frozen is not None


def test_adding_a_tensor_that_cannot_shrink_freezes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.conv(x) + x).mean((2, 3)))

    frozen = capture(Net(), torch.randn(2, 3, 3, 3)).groups[0].frozen
    assert frozen is not None
    assert frozen.reason == "aten.add joins it with an input of the network, which cannot shrink"
    assert "put a layer between x and this" in frozen.hint


def test_a_broadcast_gate_ties_nothing() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gate, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 1, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.conv(x) * torch.sigmoid(self.gate(x))).mean((2, 3)))

    program = capture(Net(), torch.randn(2, 3, 3, 3))
    assert [(g.name, g.width) for g in program.groups if g.frozen is None] == [("conv", 4)]


def test_a_channel_used_on_its_own_stays() -> None:
    """A slice of one channel gates the others: without it the slice would take its neighbour."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.fc((x * x[:, 1:2]).mean((2, 3)))

    program = capture(Net(), torch.randn(2, 3, 3, 3))
    free, alone = program.groups[0], program.groups[1]
    assert (free.width, free.frozen) == (3, None)
    assert alone.frozen is not None and "on its own" in alone.frozen.reason
    smaller = assert_same_function(program, {"conv": [2]}, [(torch.randn(2, 3, 3, 3),)])
    assert smaller.module().get_parameter("conv.weight").shape[0] == 2


def test_groups_do_not_depend_on_weights() -> None:
    program = captured("densenet")
    other = program.clone()
    with torch.no_grad():
        for parameter in other.module().parameters():
            parameter.zero_()
    for a, b in zip(analyse(program).groups, analyse(other).groups, strict=True):
        assert (a.name, a.width, a.frozen) == (b.name, b.width, b.frozen)
        assert all(
            (m.tensor, m.axis, m.role) == (n.tensor, n.axis, n.role) and np.array_equal(m.index, n.index)
            for m, n in zip(a.members, b.members, strict=True)
        )


def test_axis_terms_add_up() -> None:
    program = captured("resnet_a")
    terms = axis_terms(program)
    out, inputs = terms["layer2.0.conv2.weight"]
    assert dict(out.terms) == {"conv1": 1, "layer2.0.conv2": 1} and out.fixed == 0
    assert dict(inputs.terms) == {"layer2.0.conv1": 1}
    assert out.width({"conv1": 3, "layer2.0.conv2": 2}) == 5
    assert terms["linear.weight"][0].fixed == 10 and terms["linear.weight"][0].terms == ()
    assert terms["conv1.weight"][1].fixed == 3


def test_the_work_of_the_analysis_grows_linearly() -> None:
    """Work is calls, of Python and of C, which a busy machine does not change as it does seconds."""

    def calls(depth: int) -> int:
        net = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()) for _ in range(depth)))
        program = capture(nn.Sequential(nn.Conv2d(3, 8, 1), net), torch.randn(2, 3, 2, 2))
        count, before = 0, sys.getprofile()

        def counted(_frame: object, event: str, _value: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(counted)
        try:
            analyse(program)
        finally:
            sys.setprofile(before)
        return count

    assert calls(80) < 5 * calls(20)  # 4 times the size; 16 if quadratic


def test_a_parameter_of_a_layer_that_is_also_used_freely() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.one(x)) * self.two.bias[:, None, None]
            return self.fc(self.two(x).mean((2, 3)))

    program = capture(Net(), torch.randn(2, 3, 3, 3))
    free = [g for g in program.groups if g.frozen is None]
    assert [(g.name, g.width) for g in free] == [("one", 6)]  # the bias makes them one group
    smaller = assert_same_function(program, {"one": [0, 4]}, [(torch.randn(3, 3, 3, 3),)])
    assert smaller.module().get_parameter("two.weight").shape == (2, 2, 1, 1)


def test_a_weight_that_is_also_used_freely_stays() -> None:
    """Both its axes would have to shrink alike for every use: no rule ties them, so the layer stays."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.two(F.relu(self.one(x))) @ self.two.weight)

    groups = capture(Net(), torch.randn(2, 3)).groups
    assert all(g.frozen is not None for g in groups if g.name in ("one", "two"))


def test_a_weight_that_is_read_twice_as_that_of_a_layer() -> None:
    """The second reading is a product with its transpose: the same layer, without the bias."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.fc = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.two(F.relu(self.one(x))) @ self.two.weight.t())

    program = capture(Net(), torch.randn(2, 3))
    assert [(g.name, g.width) for g in program.groups if g.frozen is None] == [("one", 6)]
    smaller = assert_same_function(program, {"one": [1, 2, 5]}, [(torch.randn(batch, 3),) for batch in (2, 3)])
    assert smaller.module().get_parameter("two.weight").shape == (3, 3)


def test_positional_parameters_follow_the_axis_that_shrinks() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Linear(3, 6), nn.Linear(6, 2)
            self.position = nn.Parameter(torch.randn(1, 4, 6))
            self.token = nn.Parameter(torch.randn(1, 1, 6))

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1) + self.position
            return self.fc(F.gelu(x))

    program = capture(Net(), torch.randn(2, 3, 3))
    members = {m.tensor: (m.axis, m.role) for m in program.groups[0].members}
    assert members["position"] == (2, Role.CARRY) and members["token"] == (2, Role.CARRY)
    smaller = assert_same_function(program, {"embed": [1, 2, 5]}, [(torch.randn(batch, 3, 3),) for batch in (2, 3)])
    assert smaller.module().get_parameter("position").shape == (1, 4, 3)
