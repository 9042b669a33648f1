"""gate-ggn at a temperature: the matrix of the distillation loss, whatever the labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.table import Sensitivity
from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.passes.program import Program


class Net(nn.Module):
    """A hidden layer of six units."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x)))


def case(outputs: int, samples: int = 7) -> tuple[Program, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = Net(outputs).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    x = torch.randn(samples, 4, dtype=torch.float64)
    return capture(model, x), [(x, torch.randint(outputs, (samples,)))]


def ggn(program: Program, loader: list[tuple[Tensor, Tensor]], **options: object) -> Sensitivity:
    return rank(program, loader, F.cross_entropy, method="gate-ggn", **options)


def vector(table: Sensitivity) -> np.ndarray:
    return np.concatenate([scores.delta_loss for scores in table.groups.values()])


def test_it_is_the_matrix_of_the_distillation_loss():
    """By the definition: J the derivative of the outputs in the hidden units, H that of T² KL(p‖q) at q = p."""
    program, [(x, y)] = case(3)
    model = program.module()
    expected = np.zeros((6, 6))
    for sample in x:
        hidden = torch.tanh(model.hidden(sample)).detach()

        def outputs(gates: Tensor, hidden: Tensor = hidden) -> Tensor:
            return model.head(gates * hidden)

        ones = torch.ones(6).double()
        jacobian, at = torch.func.jacrev(outputs)(ones).detach(), outputs(ones).detach()

        def distillation(z: Tensor, at: Tensor = at) -> Tensor:
            return 9 * F.kl_div((z / 3).log_softmax(0), (at / 3).log_softmax(0), reduction="sum", log_target=True)

        expected += (jacobian.T @ torch.func.hessian(distillation)(at) @ jacobian).numpy() / (2 * len(x))
    table = ggn(program, [(x, y)], temperature=3.0, interactions=True)
    np.testing.assert_allclose(table.interactions, expected, rtol=1e-9, atol=1e-12)
    assert table.unit == "score" and table.facts["temperature"] == 3.0
    np.testing.assert_allclose(vector(ggn(program, [(x, (y + 1) % 3)], temperature=3.0)), vector(table), rtol=1e-9)


def test_by_itself_the_temperature_is_four_and_one_is_the_loss():
    program, loader = case(3)
    np.testing.assert_array_equal(vector(ggn(program, loader)), vector(ggn(program, loader, temperature=4.0)))
    plain = ggn(program, loader, temperature=1.0)
    assert plain.unit == "loss" and "mean_loss" in plain.facts
    assert not np.allclose(vector(plain), vector(ggn(program, loader)), rtol=0.1)


def test_drawn_labels_have_the_probabilities_of_the_temperature():
    program, loader = case(40)
    table = ggn(program, loader, draws=2000)
    assert table.facts["root"] == "labels drawn from softmax"
    np.testing.assert_allclose(vector(table), vector(ggn(program, loader, draws=0)), rtol=0.1)


def test_a_squared_error_is_the_same_at_every_temperature():
    program, [(x, _)] = case(3)
    loader = [(x, torch.randn(len(x), 3, dtype=torch.float64))]
    found = [vector(rank(program, loader, F.mse_loss, method="gate-ggn", temperature=t)) for t in (1.0, 4.0)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_a_positive_number(temperature):
    program, loader = case(3)
    with pytest.raises(UserError, match="positive number"):
        ggn(program, loader, temperature=temperature)


def test_the_first_order_term_has_no_temperature():
    program, loader = case(3)
    with pytest.raises(UserError, match="first-order term"):
        ggn(program, loader, first_order=True, temperature=2.0)
    assert ggn(program, loader, first_order=True).facts["temperature"] == 1.0
