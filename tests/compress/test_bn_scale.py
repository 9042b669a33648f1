"""Ranking by the scales of batch norms: which scales, and what becomes of groups that have none."""

import numpy as np
import pytest
import torch
from nets import captured
from torch import nn

from secateur.compress.sensitivity.rank import rank
from secateur.errors import ExitCode, UserError
from secateur.passes.capture import capture


def net(norm=True):
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 4, 3), *([nn.BatchNorm2d(4)] if norm else []), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(5 * 16, 3)).eval()


def test_it_is_the_size_of_the_scale_and_needs_no_data():
    model = net()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 0.0, 1.0]))
    table = rank(capture(model, torch.randn(2, 3, 8, 8)), method="bn-scale")
    assert table.groups["0"].delta_loss.tolist() == [0.5, 2.0, 0.0, 1.0] and table.unit == "score"
    # The second convolution has no batch norm: no score, and it is said.
    assert list(table.groups) == ["0"] and table.facts["groups_without_batch_norm"] == ["3"]


def test_several_batch_norms_of_residually_tied_units_count_alike():
    program = captured("resnet_b")
    table = rank(program, method="bn-scale")
    group = max((g for g in program.groups if g.frozen is None), key=lambda g: len(g.producers))
    norms = [m for m in group.members if "bn" in m.tensor and m.tensor.endswith("weight") and m.role == "carry"]
    weights = [program.graph_module.get_parameter(m.tensor).detach().abs().double() for m in norms]
    assert len(norms) > 1
    for unit in range(group.width):
        scales = [w[torch.as_tensor(m.index[unit])] for w, m in zip(weights, norms, strict=True)]
        assert table.groups[group.name].delta_loss[unit] == pytest.approx(float(torch.cat(scales).mean()))


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(UserError, match="no batch norm") as caught:
        rank(capture(net(norm=False), torch.randn(2, 3, 8, 8)), method="bn-scale")
    assert "magnitude" in caught.value.hint and caught.value.code == ExitCode.USAGE


def test_a_broken_scale_is_named():
    model = net()
    with torch.no_grad():
        model[1].weight[2] = np.nan
    with pytest.raises(UserError, match="NaN") as caught:
        rank(capture(model, torch.randn(2, 3, 8, 8)), method="bn-scale")
    assert caught.value.where == "1.weight"
