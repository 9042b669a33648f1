"""What `apply` does to tensors, layers and constants, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import captured
from oracle import assert_same_function
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.passes.mask import mask
from secateur.passes.prune import apply


def test_input_is_untouched_and_history_grows() -> None:
    program = captured("plain")
    before = {k: v.clone() for k, v in program.module().state_dict().items()}
    graph = str(program.graph)
    smaller, silenced = apply(program, {"0": [1, 5]}), mask(program, {"0": [1, 5]})
    assert str(program.graph) == graph
    assert all(torch.equal(v, before[k]) for k, v in program.module().state_dict().items())
    assert smaller.history == (*program.history, "apply")
    assert silenced.history == (*program.history, "mask")


def test_tensors_and_attributes_follow() -> None:
    program = captured("mobilenet")
    program.module().get_parameter("features.0.weight").requires_grad_(False)
    keep = [0, 3, 5, 11]
    smaller = apply(program, {"features.3.conv.0": keep, "features.0": [2, 4]})
    module = smaller.module()
    depthwise, norm = module.get_submodule("features.3.conv.3"), module.get_submodule("features.3.conv.4")
    assert isinstance(depthwise, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 4, 4)
    assert norm.num_features == 4
    old = program.module().state_dict()
    new = module.state_dict()
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(new[f"features.3.conv.4.{name}"], old[f"features.3.conv.4.{name}"][keep])
    assert torch.equal(new["features.3.conv.6.weight"], old["features.3.conv.6.weight"][[2, 4]][:, keep])
    assert isinstance(depthwise.weight, nn.Parameter) and depthwise.weight.requires_grad
    assert not module.get_parameter("features.0.weight").requires_grad
    assert "running_mean" not in dict(norm.named_parameters())


def test_shared_tensors_stay_shared() -> None:
    smaller = apply(captured("shared"), {"stem": [0, 2, 7]})
    module = smaller.module()
    assert module.get_parameter("first.weight") is module.get_parameter("second.weight")
    assert module.get_parameter("first.weight").shape == (3, 3)


def test_selection_is_a_set_in_any_order() -> None:
    program = captured("plain")
    one, two = apply(program, {"0": [5, 1]}), apply(program, {"0": np.array([1, 5])})
    for a, b in zip(one.module().state_dict().values(), two.module().state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_smaller_program_trains() -> None:
    program = captured("resnet_a")
    smaller = apply(program, {"conv1": [0, 1, 2], "layer2.0.conv2": [3]}).train()
    loss = smaller.module()(torch.randn(4, 3, 8, 8)).square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in smaller.module().parameters())


def test_nothing_to_remove() -> None:
    program = captured("plain")
    for keep in ({}, {"0": range(8)}):
        with pytest.raises(UserError, match="nothing would be removed"):
            apply(program, keep)
        same = apply(program, keep, allow_unchanged=True)
        assert torch.equal(same.run_example(), program.run_example())


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"conv": [0]}, r"no group is called 'conv'[\s\S]*did you mean 'conv1'"),
        ({"linear": [0]}, r"'linear' cannot be pruned[\s\S]*output of the network"),
        ({"conv1": [0, 8]}, r"'conv1' has no unit 8[\s\S]*0 to 7"),
        ({"conv1": [-1]}, r"'conv1' has no unit -1"),
        ({"conv1": [1, 2, 2]}, r"unit 2 of group 'conv1' is kept twice"),
        ({"conv1": []}, r"'conv1' would be left without units"),
        ({"conv1": [0.5]}, r"not a list of integers"),
    ],
)
def test_refusals(keep: dict, message: str) -> None:
    program = captured("resnet_a")
    for rewrite in (apply, mask):
        with pytest.raises(UserError, match=message):
            rewrite(program, keep)


def test_frozen_groups_may_be_named_if_kept_whole() -> None:
    program = captured("plain")
    assert apply(program, {"0": [0, 1], "12": range(10)}).module()(torch.randn(2, 3, 8, 8)).shape == (2, 10)


class Trunk(nn.Module):
    """A convolution to eight channels, an operation under test, and a head."""

    def __init__(self, operation, width: int = 8, features: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, features, 3, padding=1)
        self.head = nn.Conv2d(width, 2, 1)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(self.conv(x)))


def written(x: Tensor) -> Tensor:
    base = torch.zeros(x.shape[0], 10, x.shape[2], x.shape[3])
    base[:, 1:9] = x
    return base


def reversed_columns(x: Tensor) -> Tensor:
    """Channels merged into the batch, and gathered by one index that is widened over both."""
    merged = x.flatten(0, 1)
    return merged.gather(2, torch.arange(4).flip(0).expand(merged.shape[0], 4, 4)).reshape(x.shape)


OPERATIONS = {
    "batch_and_channels_in_one_size": (lambda x: F.relu(x.view(x.shape[0] * 8, 4, 4)).view(-1, 8, 4, 4), 8, 8),
    "channels_and_pixels_in_one_size": (lambda x: F.relu(x.view(x.shape[0], 128)).view(-1, 8, 4, 4), 8, 8),
    "strided_slice_by_index": (lambda x: torch.cat([x[:, 1::3], x[:, ::3]], 1), 6, 8),
    "narrow": (lambda x: torch.cat([x.narrow(1, 5, 3), x.narrow(1, -8, 5)], 1), 8, 8),
    "uneven_split": (lambda x: torch.cat(x.split([1, 5, 2], 1)[1:], 1), 7, 8),
    "shuffle": (lambda x: x.view(-1, 2, 4, 4, 4).transpose(1, 2).reshape(-1, 8, 4, 4), 8, 8),
    "shuffle_of_equal_sides": (lambda x: x.view(-1, 2, 2, 4, 4).transpose(1, 2).reshape(-1, 4, 4, 4), 4, 4),
    "unflatten": (lambda x: x.unflatten(1, (4, 2)).flip(1).flatten(1, 2), 8, 8),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), 2, 8),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), 32, 8),
    "unfold": (lambda x: F.unfold(x, 3, padding=1).unflatten(2, (4, 4)), 72, 8),
    "fold": (lambda x: F.fold(x.flatten(2), 8, 2, stride=2), 2, 8),
    "unfold_and_fold": (lambda x: F.fold(F.unfold(x, 3, padding=1).relu(), 4, 3, padding=1), 8, 8),
    "index_of_a_merged_batch": (reversed_columns, 8, 8),
    "zeros": (lambda x: torch.cat([x, x.new_zeros(x.shape[0], 2, 4, 4)], 1), 10, 8),
    "written_slice": (written, 10, 8),
    "expanded_gate": (lambda x: x * x.mean((1, 2, 3), keepdim=True).expand(-1, 8, -1, -1), 8, 8),
    "repeat": (lambda x: x.repeat(1, 3, 1, 1), 24, 8),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), 16, 8),
    "squeeze_all": (lambda x: x.mean((2, 3), keepdim=True).squeeze().reshape(-1, 8, 1, 1), 8, 8),
    "stack": (lambda x: torch.stack([x, x.tanh()], 2).amax(2), 8, 8),
    "glu": (lambda x: F.glu(x, 1), 4, 8),
    "negative_pad": (lambda x: F.pad(x, (1, 1, -1, 2, 0, 0)), 8, 8),
    "non_zero_pad": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2), value=3.0), 11, 8),
    "unbind": (lambda x: torch.stack(x.unbind(3), 3), 8, 8),
    "select_of_pixels": (lambda x: x.select(3, 1)[..., None] + x.transpose(1, 2).select(1, 0)[:, :, None], 8, 8),
    "nhwc": (lambda x: F.relu(x.permute(0, 2, 3, 1)).contiguous().permute(0, 3, 1, 2), 8, 8),
    "index_select": (lambda x: x.index_select(1, torch.tensor([3, 1, 1, 7])), 4, 8),
    "index": (lambda x: x[:, [3, 1, -1, 7, 0]], 5, 8),
    "where_and_clamp": (lambda x: torch.where(x > 0, x.clamp(max=1.0), x.new_zeros(())), 8, 8),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name: str) -> None:
    operation, width, features = OPERATIONS[name]
    torch.manual_seed(0)
    program = capture(Trunk(operation, width, features).eval(), torch.randn(2, 3, 4, 4))
    rng = np.random.default_rng(0)
    free = [g for g in program.groups if g.frozen is None]
    if name == "expanded_gate":  # a mean over channels: its divisor is their number
        assert not free
        return
    assert free
    for _ in range(3):
        keep = {g.name: rng.permutation(g.width)[: rng.integers(1, g.width)] for g in free}
        assert_same_function(program, keep, [(torch.randn(batch, 3, 4, 4),) for batch in (2, 3)])


def test_gathered_channels_can_be_pruned_again() -> None:
    """The index of the first rewrite is a buffer; the second one gets its own and removes that."""
    program = capture(Trunk(lambda x: torch.cat([x, x], 1)[:, ::3], 6), torch.randn(2, 3, 4, 4))
    inputs = [(torch.randn(2, 3, 4, 4),)]
    first = assert_same_function(program, {g.name: range(g.width - 1) for g in program.groups[:1]}, inputs)
    second = assert_same_function(first, {g.name: range(1, g.width) for g in first.groups[:1]}, inputs)
    assert len([name for name, _ in first.module().named_buffers()]) == 1
    assert len([name for name, _ in second.module().named_buffers()]) == 1


def test_one_position_left_is_repeated_as_often_as_before() -> None:
    """Heads of a table of positions, repeated for every sample and merged with the batch: the one left is no width."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.x, self.head = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            places = self.table(torch.eye(3)).t().repeat(n, 1)  # [n * 4, 3]
            return self.head((self.x(x).transpose(1, 2).reshape(-1, 3) * places).view(n, 4, 3).transpose(1, 2))

    program = capture(Net(), torch.randn(2, 3, 3))
    (group,) = [g for g in program.groups if g.frozen is None]
    for kept in ([2], [0, 3]):
        assert_same_function(program, {group.name: kept}, [(torch.randn(n, 3, 3),) for n in (2, 5)])


def test_one_channel_left_is_not_squeezed_away() -> None:
    program = capture(Trunk(lambda x: x.mean((2, 3), keepdim=True).squeeze()[..., None, None]), torch.randn(2, 3, 4, 4))
    smaller = assert_same_function(program, {"conv": [3]}, [(torch.randn(2, 3, 4, 4),)])
    assert smaller.module().get_submodule("head").in_channels == 1  # type: ignore[union-attr]


def test_a_view_that_the_new_memory_layout_forbids() -> None:
    """One channel left: its strides are those of both layouts, and what follows picks the other."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4 * 16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x).transpose(1, 3).contiguous().transpose(1, 3).contiguous()
            return self.fc(self.three(self.two(x)).view(x.shape[0], -1))

    program = capture(Net(), torch.randn(2, 3, 4, 4))
    keep = {g.name: [0] for g in program.groups if g.frozen is None}
    smaller = assert_same_function(program, keep, [(torch.randn(3, 3, 4, 4),)])
    assert all(str(node.target) != "aten.view.default" for node in smaller.graph.nodes)
