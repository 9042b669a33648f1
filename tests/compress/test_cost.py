"""The cost model against counting the physically rewritten network, and counting against arithmetic by hand."""

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import NETS
from torch import nn

from secateur.compress.cost.model import Cost, CostModel, count
from secateur.passes.capture import capture
from secateur.passes.prune import apply


@functools.cache
def captured(name):
    model, inputs = NETS[name]()
    program = capture(model, inputs)
    return program, CostModel.of(program)


def random_keep(program, rng):
    return {
        g.name: np.sort(rng.choice(g.width, rng.integers(1, g.width + 1), replace=False)).tolist()
        for g in program.groups
        if g.frozen is None
    }


@pytest.mark.parametrize("name", NETS)
def test_the_model_agrees_with_counting_what_apply_returns(name):
    program, model = captured(name)
    assert model.dense == count(program)
    rng = np.random.default_rng(0)
    for _ in range(3):
        keep = random_keep(program, rng)
        widths = {name: len(units) for name, units in keep.items()}
        assert model.cost(widths) == count(apply(program, keep, allow_unchanged=True))


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["resnet_a", "densenet", "resnext", "mobilenet"]), st.integers(0, 2**32 - 1))
def test_the_model_agrees_on_random_widths(name, seed):
    program, model = captured(name)
    keep = random_keep(program, np.random.default_rng(seed))
    assert model.cost({n: len(k) for n, k in keep.items()}) == count(apply(program, keep, allow_unchanged=True))


def test_counting_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 4x4 positions out of 8x8
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),
        nn.Flatten(),
        nn.Linear(128, 10),
    ).eval()
    params = (8 * 27 + 8) + 16 + (8 * 2 * 9) + (1280 + 10)
    macs = 16 * 8 * 27 + 16 * 8 * 2 * 9 + 1280
    for batch in (2, 5):
        assert count(capture(model, torch.randn(batch, 3, 8, 8))) == Cost(params, macs)


def test_a_transposed_convolution_multiplies_at_every_input_position():
    model = nn.Sequential(nn.ConvTranspose2d(3, 5, 2, stride=2), nn.ReLU(), nn.Conv2d(5, 2, 1)).eval()
    cost = count(capture(model, torch.randn(2, 3, 4, 4)))
    assert cost.macs == 16 * 3 * 5 * 4 + 64 * 10


def test_a_module_called_twice_multiplies_twice_and_is_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(torch.relu(self.body(torch.relu(self.body(torch.relu(self.stem(x)))))))

    program = capture(Twice().eval(), torch.randn(2, 4))
    assert count(program) == Cost(30 + 42 + 21, 24 + 2 * 36 + 18) == CostModel.of(program).dense


class Mixer(nn.Module):
    """Channels lie on the axis over which the second linear layer is repeated."""

    def __init__(self):
        super().__init__()
        self.embed, self.across, self.head = nn.Linear(5, 8), nn.Linear(6, 6), nn.Linear(8, 3)

    def forward(self, x):  # [batch, tokens 6, 5]
        hidden = torch.relu(self.embed(x)).transpose(1, 2)
        return self.head(torch.relu(self.across(hidden)).transpose(1, 2))


def test_channels_on_a_position_axis_are_counted():
    program = capture(Mixer().eval(), torch.randn(2, 6, 5))
    model = CostModel.of(program)
    assert model.dense == count(program) == Cost(48 + 42 + 27, 6 * 40 + 8 * 36 + 6 * 24)
    group = next(g for g in program.groups if g.frozen is None and g.name == "embed")
    smaller = apply(program, {group.name: [1, 4, 6]})
    assert model.cost({group.name: 3}) == count(smaller) == Cost(18 + 42 + 12, 6 * 15 + 3 * 36 + 6 * 9)


def test_many_choices_at_once_equal_one_by_one():
    _, model = captured("resnet_b")
    rng = np.random.default_rng(1)
    widths = rng.integers(1, model.widths + 1, size=(7, len(model.groups)))
    together = model.costs(widths)
    for row, (params, macs) in zip(widths, together, strict=True):
        assert model.cost(dict(zip(model.groups, row.tolist(), strict=True))) == Cost(params, macs)


def test_an_unknown_group_is_refused():
    with pytest.raises(KeyError):
        captured("plain")[1].cost({"nowhere": 3})
