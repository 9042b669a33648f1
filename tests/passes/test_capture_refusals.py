"""What cannot be captured is refused: exit code, the user's line, a hint."""

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ExitCode, UnsupportedError, UserError
from secateur.passes.capture import capture


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Item(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max().item()


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


class Selects(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


@pytest.mark.parametrize("kind", [Branch, Item, Numpy, Selects])
def test_beyond_a_graph(kind):
    with pytest.raises(UnsupportedError) as caught:
        capture(kind(), torch.randn(2, 3))
    error = caught.value
    assert error.code == ExitCode.UNSUPPORTED == 4
    assert error.why and error.hint
    assert len(str(error).splitlines()) <= 4
    assert "test_capture_refusals.py:" in error.where


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with torch.no_grad():
        model[0].weight[1, 2] = value
    with pytest.raises(UserError, match="not finite") as caught:
        capture(model, torch.randn(2, 3))
    assert caught.value.where == "0.weight" and "1 of 12" in caught.value.why
    with torch.no_grad():
        model[0].weight.zero_()
        model[1].running_var[0] = value
    with pytest.raises(UserError) as caught:
        capture(model, torch.randn(2, 3))
    assert caught.value.where == "1.running_var"


def test_masks_may_be_infinite():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, float("-inf"), 0.0]))

        def forward(self, x: Tensor) -> Tensor:
            return torch.softmax(x + self.mask, 1)

    x = torch.randn(2, 3)
    assert capture(Masked(), x).module()(x)[:, 1].eq(0).all()


def test_examples_that_do_not_fit():
    with pytest.raises(UserError, match="does not run on the example inputs") as caught:
        capture(nn.Linear(3, 4), torch.randn(2, 5))
    assert caught.value.code == ExitCode.USAGE
    with pytest.raises(UserError, match="does not run on the example inputs"):
        capture(nn.Linear(3, 4), {"wrong": torch.randn(2, 3)})


def test_an_empty_batch():
    with pytest.raises(UserError, match="empty"):
        capture(nn.Linear(3, 4), torch.randn(0, 3))


def test_lazy_modules_have_to_be_run_first():
    with pytest.raises(UserError, match="no shape yet"):
        capture(nn.Sequential(nn.LazyLinear(4)), torch.randn(2, 3))


def test_a_model_whose_graph_computes_something_else():
    class Counts(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if torch.compiler.is_exporting() else x * 3

    with pytest.raises(UnsupportedError, match="does not compute what the model computes"):
        capture(Counts(), torch.randn(2, 3))


def test_not_a_module():
    with pytest.raises(UserError, match="not a torch model"):
        capture(lambda x: x, torch.randn(2, 3))  # type: ignore[arg-type]
