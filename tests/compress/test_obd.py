"""OBD: closed forms, next to the comparison with the full matrix in test_ggn."""

import numpy as np
import pytest
import torch
from torch import nn

from secateur.compress.sensitivity.rank import rank
from secateur.errors import UserError
from secateur.passes.capture import capture


def test_of_a_linear_network_and_a_squared_error_it_is_known_in_closed_form():
    """h of w1[u, i] is 2 x_i² ‖column u of w2‖²: ½ Σ_i w1[u, i]² of it, meaned over the samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 8, bias=False)).double().eval()
    x = torch.randn(10, 4, dtype=torch.float64)
    target = torch.zeros(10, 8, dtype=torch.float64)
    program = capture(model, x[:2])
    loss = lambda o, t: (o - t).square().sum(1).mean()  # noqa: E731
    (scores,) = rank(program, [(x, target)], loss, method="obd", draws=8).groups.values()
    first, second = (layer.weight.detach() for layer in model)
    expected = (first.square() * x.square().mean(0)).sum(1) * second.square().sum(0)
    np.testing.assert_allclose(scores.delta_loss, expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize("draws", [0, -1, True, 2.0])
@pytest.mark.parametrize("method", ["obd", "ggn"])
def test_a_number_of_draws_that_is_none_is_refused(method, draws):
    program = capture(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).eval(), torch.randn(2, 4))
    with pytest.raises(UserError, match="draws"):
        rank(program, [], nn.functional.cross_entropy, method=method, draws=draws)
