"""Operations of users: captured once a rule is registered, pruned through it, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from oracle import assert_same_function
from torch import Tensor, nn

from secateur.errors import UnsupportedError, UserError
from secateur.passes.capture import capture
from secateur.passes.labels.register import all_rules, register_rule
from secateur.passes.labels.rule import Rule
from secateur.passes.labels.table import RULES
from secateur.passes.opnames import target_of
from secateur.passes.program import Program
from secateur.passes.verify import verify


@torch.library.custom_op("secateur_tests::widen", mutates_args=())
def widen(x: Tensor, channels: int) -> Tensor:
    """Scales every channel; told how many there are."""
    return x.reshape(-1, channels, *x.shape[2:]) * 2.0


@widen.register_fake
def _(x: Tensor, channels: int) -> Tensor:
    return x.new_empty(x.shape)


widen.register_autograd(lambda ctx, grad: (2.0 * grad, None))


@torch.library.custom_op("secateur_tests::unheard", mutates_args=())
def unheard(x: Tensor) -> Tensor:
    """Never registered."""
    return x.clone()


@unheard.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


class Net(nn.Module):
    def __init__(self, call) -> None:
        super().__init__()
        self.conv, self.head, self.call = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(self.conv(x)))


def rewrite(resize, node) -> None:
    node.update_arg(1, resize.shape(node)[1])


@pytest.fixture
def registered():
    register_rule(widen, Rule(lambda flow, node: flow.labels(node.args[0]), rewrite))


def test_a_registered_operation_prunes(registered: None, tmp_path: Path) -> None:
    program = capture(Net(lambda x: widen(x, 6)), torch.randn(2, 3, 4, 4))
    assert program.groups[0].frozen is None
    smaller = assert_same_function(program, {"conv": [0, 2, 5]}, [(torch.randn(b, 3, 4, 4),) for b in (2, 3)])
    verify(smaller)
    smaller.save(tmp_path / "p")
    again, x = Program.load(tmp_path / "p"), torch.randn(3, 3, 4, 4)
    torch.testing.assert_close(again.module()(x), smaller.module()(x))


def test_an_operation_without_a_rule_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match=r"secateur_tests\.unheard"):
        capture(Net(lambda x: unheard(x)), torch.randn(2, 3, 4, 4))
    assert target_of("secateur_tests.unheard.default") is None  # nor does a file bring it in


def test_the_table_of_the_package_stays(registered: None) -> None:
    assert "secateur_tests.widen" in all_rules() and "secateur_tests.widen" not in RULES


@pytest.mark.parametrize("key", [torch.ops.secateur_tests.widen, "secateur_tests.widen", nn.Hardswish])
def test_what_a_rule_may_be_for(key) -> None:
    rule = all_rules().get(key if isinstance(key, type) else "secateur_tests.widen")
    register_rule(key, rule or Rule(lambda flow, node: flow.labels(node.args[0])))


@pytest.mark.parametrize("key", ["widen", 3, nn.ReLU()])
def test_what_a_rule_may_not_be_for(key) -> None:
    with pytest.raises(UserError, match="an operation or a class of layers"):
        register_rule(key, Rule(lambda flow, node: None))
