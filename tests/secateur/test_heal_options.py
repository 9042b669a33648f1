"""The public function says what a setting should have been."""

import pytest
import torch
from torch import nn

from secateur.api import capture, heal
from secateur.errors import UserError


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"epoch": 1}, "did you mean epochs?"), ({"epochs": "many"}, "cannot be used"), ({"lr": -1.0}, "cannot be used")],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    program = capture(nn.Linear(3, 2).eval(), (torch.zeros(2, 3),))
    with pytest.raises(UserError) as refused:
        heal(program, [(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))], **settings)
    assert message in str(refused.value) and refused.value.where.startswith("heal")
