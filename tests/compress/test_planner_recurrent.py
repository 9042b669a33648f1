"""Networks with recurrent layers are planned around them: their costs depend on no group."""

import pytest
import torch
from torch import nn

from secateur.api import apply, capture, plan, rank
from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.errors import BudgetError


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.hidden, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.hidden(self.gru(x)[0][:, -1]).relu())


@pytest.mark.parametrize("more", [{}, {"macs": "95%"}, {"size": "95%"}])
def test_a_budget_on_parameters_counts_what_cannot_shrink(more):
    program = capture(Recurrent().eval(), (torch.randn(2, 5, 8),))
    table = rank(program, method="magnitude")
    smaller = apply(program, plan(program, table, budget=Budget(params="90%", **more)))
    assert count(smaller).params <= 0.9 * count(program).params
    with pytest.raises(BudgetError, match="parameters"):
        plan(program, table, budget=Budget(params="10%"))
