"""The table of models: what is counted, what is said, and that a process that dies is a result like any other."""

import json
import os
import time

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def families(ranking_path):
    from families import case

    return case


def small() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.randn(2, 3, 8, 8)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_model_goes_through_all_stages(families):
    from families.check import STAGES, check

    found = check(families.Case("small", "ours", "plain", small))
    assert tuple(found["stages"]) == STAGES
    assert {stage["status"] for stage in found["stages"].values()} == {"ok"}
    stages = found["stages"]
    # Conv 3 -> 8 with its bias, and the input axis of the second convolution; its bias stays.
    assert stages["groups"]["prunable"] == pytest.approx((8 * 27 + 8 + 4 * 8 * 9) / (8 * 27 + 8 + 4 * 8 * 9 + 4))
    assert stages["apply"]["moved"] > 1e-3 and stages["apply"]["left"] == pytest.approx(0.5, abs=0.05)
    json.dumps(found)


def test_shares_add_up(families):
    from families.shares import shares

    from secateur.passes.capture import capture

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.norm, self.up = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 6)
            self.down, self.table = nn.Linear(6, 4), nn.Parameter(torch.randn(3, 1))

        def forward(self, ids):
            x = self.embedding(ids)
            return x + self.down(self.up(self.norm(x)).relu()) + self.table

    found = shares(capture(Words(), torch.randint(0, 5, (2, 3))))
    assert found.params == 20 + 8 + 30 + 28 + 3
    assert found.prunable == pytest.approx((30 + 24) / found.params)
    assert found.prunable + sum(found.frozen.values()) + found.unlabelled == pytest.approx(1)
    assert found.unlabelled == pytest.approx(3 / found.params)


def test_a_difference_of_nothing_and_of_something(families):
    from families.check import _difference

    x = torch.tensor([1.0, float("nan"), -4.0])
    assert _difference([x], [x]) == 0
    assert _difference([x + torch.tensor([0.0, 0.0, 1.0])], [x]) == pytest.approx(0.25)
    assert _difference([x], [torch.ones(3)]) == float("inf")
    assert _difference([x], [x, x]) == float("inf")


def test_neutral_values_are_moved(families):
    model = families.unsettle(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert not np.isclose(model[1].weight.detach(), 1).any() and (model[1].running_mean != 0).all()


def killed() -> tuple[nn.Module, torch.Tensor]:
    os._exit(9)


def endless() -> tuple[nn.Module, torch.Tensor]:
    while time.monotonic() > 0:
        pass
    return small()


def test_the_script_stores_continues_and_writes_the_page(families, tmp_path, monkeypatch):
    import zoo

    made = [
        families.Case("small", "ours", "plain", small, quick=True),
        families.Case("branch", "ours", "control flow", lambda: (Branch(), torch.randn(2, 3)), quick=True),
        families.Case("killed", "ours", "dies", killed, quick=True),
        families.Case("endless", "theirs", "hangs", endless),
    ]
    asked = []
    monkeypatch.setattr(zoo, "cases", lambda names=None, quick=False: [c for c in made if c.quick or not quick])
    monkeypatch.setattr(zoo, "_LIBRARIES", ())
    check = zoo.check_apart
    monkeypatch.setattr(zoo, "check_apart", lambda case, *rest: (asked.append(case.name), check(case, *rest))[1])
    page = tmp_path / "models.md"
    arguments = ["--out", str(tmp_path / "out"), "--seconds", "300", "--table", str(page)]
    zoo.main([*arguments, "--quick"])
    zoo.main([*arguments, "--seconds", "1"])
    assert asked == ["small", "branch", "killed", "endless"]
    text = page.read_text()
    assert "**4 models**: 1 captured" in text and "**0 wrong**" in text
    assert "| small | plain | 516 | 99% |" in text
    assert "the model cannot be captured as a graph" in text and "test_zoo.py:" in text
    assert "ended with code 9" in text and "no result after 1 seconds" in text
    assert "1. it is an output of the network. For example small: 2: it is an output" in text
