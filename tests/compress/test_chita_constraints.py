"""Projections against brute force, and what of patterns is refused."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from tiny_recipe import TinyNet

from secateur.compress.chita.constraints import Blocks, PerLayer, TopK
from secateur.compress.chita.falcon import WeightsAndMacs, weight_costs
from secateur.compress.chita.nm import NM, holds_pattern, parse_pattern
from secateur.compress.chita.schedule import sparsities
from secateur.compress.chita.variables import Variable, Variables, find_variables
from secateur.errors import UserError
from secateur.passes.capture import capture


def variables(*shapes, axis=1) -> Variables:
    items, start = [], 0
    for i, shape in enumerate(shapes):
        items.append(Variable(f"{i}.weight", torch.Size(shape), start, axis))
        start += items[-1].size
    return Variables(tuple(items), {})


def energy(values, mask) -> float:
    return float(values[mask].double().square().sum())


def test_top_k_keeps_exactly_k_even_of_equal_weights():
    mask = TopK(3, (slice(0, 8),)).project(torch.ones(8))
    assert int(mask.sum()) == 3


def test_top_k_leaves_no_layer_empty_and_is_the_best_that_does_not():
    values = torch.tensor([9.0, 8, 7, 6, 5, 0.1, 0.3, 0.2])
    constraint = TopK(4, (slice(0, 5), slice(5, 8)))
    mask = constraint.project(values)
    best = max(energy(values, list(c)) for c in itertools.combinations(range(8), 4) if any(i >= 5 for i in c))
    assert energy(values, mask) == pytest.approx(best)
    assert mask.tolist() == [True, True, True, False, False, False, True, False]


def test_every_layer_keeps_its_share():
    mask = PerLayer.of(variables((4, 5), (2, 5)), 0.7).project(torch.randn(30))
    assert (int(mask[:20].sum()), int(mask[20:].sum())) == (6, 3)


@pytest.mark.parametrize("axis", [0, 1])
def test_n_of_m_keeps_the_two_largest_of_four_input_channels(axis):
    found = variables((8, 12, 3, 3) if axis == 1 else (12, 8, 3, 3), axis=axis)
    pattern, dense = NM.of(found, 2, 4)
    values = torch.randn(found.size)
    mask = pattern.project(values)
    assert not dense
    kept = torch.where(mask, values, 0.0).view(found.items[0].shape)
    assert holds_pattern(kept, 2, 4, axis)
    assert not holds_pattern(values.view(found.items[0].shape), 2, 4, axis)
    groups = kept.movedim(axis, -1).unflatten(-1, (3, 4))
    original = values.view(found.items[0].shape).movedim(axis, -1).unflatten(-1, (3, 4))
    expected = original.abs().topk(2, -1).values.sum(-1)
    assert torch.allclose(groups.abs().sum(-1), expected)


def test_layers_that_the_pattern_does_not_fit_stay_dense_with_the_reason():
    pattern, dense = NM.of(variables((8, 3, 3, 3), (8, 8)), 2, 4)
    assert list(dense) == ["0.weight"]
    assert "3 input channels" in str(dense["0.weight"])
    mask = pattern.project(torch.randn(72 * 3 + 64))
    assert mask[:216].all()
    assert int(mask[216:].sum()) == 32


@pytest.mark.parametrize("text", ["4:4", "0:4", "5:4"])
def test_patterns_that_remove_nothing_or_everything_are_refused(text):
    with pytest.raises(UserError, match="nothing or everything"):
        NM.of(variables((8, 8)), *parse_pattern(text))


@pytest.mark.parametrize("text", ["", "2-4", "a:b", "2:", "-1:4"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UserError, match="written N:M"):
        parse_pattern(text)


def test_no_layer_that_fits_is_refused():
    with pytest.raises(UserError, match="no layer has input channels"):
        NM.of(variables((8, 3)), 2, 4)


def test_blocks_are_whole_and_the_best():
    found = variables((4, 4))
    constraint = Blocks.of(found, 0.5, (2, 2))
    values = torch.randn(16)
    mask = constraint.project(values).view(4, 4)
    blocks = mask.unflatten(0, (2, 2)).unflatten(2, (2, 2)).permute(0, 2, 1, 3).flatten(2)
    assert (blocks.all(-1) | ~blocks.any(-1)).all()
    sums = values.view(4, 4).square().unflatten(0, (2, 2)).unflatten(2, (2, 2)).sum((1, 3)).flatten()
    assert energy(values, mask.flatten()) == pytest.approx(float(sums.topk(2).values.sum()))


def test_layers_smaller_than_a_block_are_one_block():
    constraint = Blocks.of(variables((2, 3), (8, 8), (8, 8), (8, 8)), 0.1, (8, 4))
    assert constraint.sizes.tolist() == [6.0, *[32.0] * 6]


def test_blocks_leave_no_layer_empty():
    values = torch.cat([torch.full((16,), 9.0), torch.full((16,), 0.1)])
    mask = Blocks.of(variables((4, 4), (4, 4)), 0.5, (2, 2)).project(values)
    assert int(mask.sum()) == 16
    assert int(mask[16:].sum()) == 4
    with pytest.raises(UserError, match="would empty whole layers"):
        Blocks.of(variables((4, 4), (4, 4)), 0.5, (4, 4)).project(values)


@pytest.mark.parametrize("share", [0.2, 0.35, 0.6])
def test_falcon_is_the_integer_optimum_up_to_rounding(share):
    generator = torch.Generator().manual_seed(3)
    values, cost = torch.randn(60, generator=generator), torch.tensor([16.0] * 20 + [4.0] * 20 + [1.0] * 20)
    macs = share * float(cost.sum())
    constraint = WeightsAndMacs(30, macs, cost, (slice(0, 20), slice(20, 40), slice(40, 60)), floor=0)
    mask = constraint.project(values)
    assert int(mask.sum()) <= 30
    assert float(cost[mask].sum()) <= macs
    gain = values.double().square().numpy()
    best = milp(
        -gain,
        constraints=LinearConstraint(np.stack([np.ones(60), cost.numpy()]), -np.inf, [30, macs]),
        integrality=np.ones(60),
        bounds=Bounds(0, 1),
    )
    assert -best.fun * 0.95 <= energy(values, mask) <= -best.fun + 1e-9


def test_falcon_counts_multiply_adds_as_the_cost_model_does():
    program = capture(TinyNet(), (torch.randn(2, 3, 8, 8),))
    found = find_variables(program)
    from secateur.compress.cost.model import count

    assert float(weight_costs(program, found).double().sum()) == count(program).macs


@pytest.mark.parametrize("schedule", ["poly", "exponential", "linear", "constant", "geometric"])
def test_schedules_rise_to_the_sparsity_itself(schedule):
    found = sparsities(7, 0.9, schedule=schedule, start=0.3)
    assert found[-1] == 0.9
    assert all(0.3 <= a <= b for a, b in itertools.pairwise(found))
    assert sparsities(1, 0.9, schedule=schedule) == (0.9,)


def test_the_default_schedule_is_cubic():
    assert sparsities(3, 0.8, start=0.2) == pytest.approx((0.2, 0.8 - 0.6 * 0.125, 0.8))


def test_shared_weights_are_one_variable_and_frozen_ones_stay():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Linear(8, 8, bias=False) for _ in range(3))
            self.b.weight = self.a.weight
            self.c.weight.requires_grad_(False)

        def forward(self, x):
            return self.c(self.b(torch.relu(self.a(x))))

    found = find_variables(capture(Net(), (torch.randn(2, 8),)))
    assert found.size == 64
    assert any("frozen" in str(why) for why in found.refused.values())


def test_a_pattern_of_names_that_matches_nothing_is_named():
    program = capture(TinyNet(), (torch.randn(2, 3, 8, 8),))
    with pytest.raises(UserError, match=r"matches no weight.*did you mean conv1.weight"):
        find_variables(program, ["conv1.wieght"])
    with pytest.raises(UserError, match="no weight that could become zero"):
        find_variables(program, ["*"])


@pytest.mark.parametrize("sparsity", [0, 1, 0.0, 1.0, -0.1, 1.5, float("nan"), True, "0.5"])
def test_sparsities_out_of_range_are_refused(sparsity):
    with pytest.raises(UserError, match="between 0 and 1"):
        TopK.of(variables((8, 8)), sparsity)


def test_sparsities_that_would_empty_layers_are_refused():
    with pytest.raises(UserError, match="empty whole layers"):
        TopK.of(variables((4, 4), (4, 4)), 0.97)
