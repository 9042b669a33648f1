"""Folding against the network that was folded."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import NETS, randomise_bn, rebatch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from secateur.passes.capture import capture
from secateur.passes.fold import batch_norm_to_conv, fold_batch_norm, remove_dropout
from secateur.passes.program import Program


def _norms(program: Program) -> list[str]:
    return [name for name, m in program.module().named_modules() if isinstance(m, _BatchNorm)]


def _outputs(program: Program, inputs: object) -> list[torch.Tensor]:
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    with torch.no_grad():
        return pytree.tree_leaves(program.module()(*args, **kwargs))


def _captured(module: nn.Module, shape: tuple[int, ...]) -> Program:
    return capture(randomise_bn(module), (torch.randn(shape, generator=torch.Generator().manual_seed(3)),))


@pytest.mark.parametrize("name", sorted(NETS))
def test_folding_computes_the_same(name: str) -> None:
    module, inputs = NETS[name]()
    program = capture(module, inputs)
    before = {n: t.clone() for n, t in program.module().state_dict().items()}
    folded = batch_norm_to_conv(fold_batch_norm(remove_dropout(program)))
    batch = rebatch(inputs, 3)
    for expected, got in zip(_outputs(program, batch), _outputs(folded, batch), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for tensor_name, tensor in program.module().state_dict().items():
        assert torch.equal(tensor, before[tensor_name]), "the pass changed its input"


@pytest.mark.parametrize("name", ["resnet_a", "resnet_b", "mobilenet", "preact", "densenet"])
def test_no_batch_norm_is_left(name: str) -> None:
    module, inputs = NETS[name]()
    folded = fold_batch_norm(capture(module, inputs))
    assert bool(_norms(folded)) == (name in ("preact", "densenet"))
    assert not _norms(batch_norm_to_conv(folded))


def test_grouped_transposed_convolution() -> None:
    program = _captured(
        nn.Sequential(nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2, bias=True), nn.BatchNorm2d(8)), (2, 6, 5, 5)
    )
    folded = fold_batch_norm(program)
    assert not _norms(folded)
    torch.testing.assert_close(folded.run_example(), program.run_example(), rtol=1e-5, atol=1e-5)


def test_linear_of_rank_two_is_folded_and_of_rank_three_is_not() -> None:
    flat = fold_batch_norm(_captured(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), (3, 4)))
    assert not _norms(flat)
    # Here batch norm normalises axis 1, the positions, although their number equals that of the features.
    program = _captured(nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5)), (3, 5, 4))
    deep = fold_batch_norm(program)
    assert _norms(deep)
    torch.testing.assert_close(deep.run_example(), program.run_example())


class _TwoReaders(nn.Module):
    """The convolution is read by its batch norm and by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv(x)
        return self.bn(out) + out


class _CalledTwice(nn.Module):
    """One convolution, two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


@pytest.mark.parametrize("build", [_TwoReaders, _CalledTwice])
def test_what_others_read_is_not_folded(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    program = _captured(build(), (2, 3, 6, 6))
    if build is _CalledTwice:
        randomise_bn(program.module().second, seed=5)
    folded = fold_batch_norm(program)
    assert _norms(folded) == _norms(program)
    torch.testing.assert_close(folded.run_example(), program.run_example())
    torch.testing.assert_close(batch_norm_to_conv(folded).run_example(), program.run_example(), rtol=1e-5, atol=1e-5)


def test_a_tied_kernel_keeps_its_other_user() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1, bias=False)
            self.second = nn.Conv2d(3, 3, 3, padding=1, bias=True)
            self.second.weight = self.first.weight
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.bn(self.first(x)))

    torch.manual_seed(0)
    program = _captured(Tied(), (2, 3, 6, 6))
    folded = fold_batch_norm(program)
    assert not _norms(folded)
    torch.testing.assert_close(folded.run_example(), program.run_example(), rtol=1e-5, atol=1e-5)


def test_folding_is_done_in_double_precision() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
    randomise_bn(module)
    with torch.no_grad():
        module[1].running_var.mul_(1e-4)
        module[1].running_mean.add_(50.0)
    exact = copy.deepcopy(module).double()
    x = torch.randn(4, 16, 3, 3)
    layer = fold_batch_norm(capture(module, (x,))).module().get_submodule("0")
    scale = exact[1].weight / (exact[1].running_var + exact[1].eps).sqrt()
    wanted = exact[1].bias - exact[1].running_mean * scale
    assert torch.equal(layer.bias, wanted.float())


def test_dropout_is_removed() -> None:
    module, inputs = NETS["preact"]()
    without = remove_dropout(capture(module, inputs)).train()
    assert not [m for m in without.module().modules() if isinstance(m, nn.Dropout)]
