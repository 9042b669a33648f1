"""Batch-norm statistics against those of all values at once."""

from __future__ import annotations

import pytest
import torch
from nets import captured
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.passes.program import Program


def _batches(sizes: tuple[int, ...]) -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(2)
    return [(2.0 + 3.0 * torch.randn(n, 3, 8, 8, generator=generator), 0) for n in sizes]


def _brute_force(program: Program, batches: list[tuple[Tensor, int]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of all that each batch norm reads, layers in front normalising by the batch."""
    module = program.clone().eval().module()
    seen: dict[str, list[Tensor]] = {}
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            norm.train()
            norm.register_forward_hook(lambda _, x, __, name=name: seen.setdefault(name, []).append(x[0].double()))
    with torch.no_grad():
        for x, _ in batches:
            module(x)
    flat = {name: torch.cat([v.transpose(0, 1).flatten(1) for v in values], 1) for name, values in seen.items()}
    return {name: (v.mean(1), v.var(1)) for name, v in flat.items()}


@pytest.mark.parametrize("name", ["resnet_b", "preact", "mobilenet"])
def test_statistics_are_those_of_the_population(name: str) -> None:
    program = captured(name)
    batches = _batches((5, 3, 7))
    fresh = reestimate_batch_norm(program, batches, samples=15)
    layers = dict(fresh.module().named_modules())
    wanted = _brute_force(program, batches)
    assert wanted
    for path, (mean, variance) in wanted.items():
        torch.testing.assert_close(layers[path].running_mean.double(), mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layers[path].running_var.double(), variance, rtol=1e-4, atol=1e-5)


def test_weights_modes_and_the_input_stay() -> None:
    program = captured("preact")
    before = {n: t.clone() for n, t in program.module().state_dict().items()}
    momenta = {n: m.momentum for n, m in program.module().named_modules() if isinstance(m, _BatchNorm)}
    fresh = reestimate_batch_norm(program, _batches((8,)))
    assert all(torch.equal(t, before[n]) for n, t in program.module().state_dict().items())
    for name, parameter in fresh.module().named_parameters():
        assert torch.equal(parameter, before[name])
    assert {n: m.momentum for n, m in fresh.module().named_modules() if isinstance(m, _BatchNorm)} == momenta
    assert not fresh.module().training and not any(m.training for m in fresh.module().modules())


def test_only_as_many_samples_as_asked_for_are_read() -> None:
    program, read = captured("resnet_a"), []

    def loader():
        for batch in _batches((4, 4, 4)):
            read.append(1)
            yield batch

    reestimate_batch_norm(program, loader(), samples=5)
    assert len(read) == 2


def test_broken_statistics_are_repaired() -> None:
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), torch.zeros(2, 3, 8, 8))
    norm = program.module().get_submodule("1")
    norm.running_mean.fill_(100.0)
    norm.running_var.fill_(1e-3)
    batches = _batches((64,))
    with torch.no_grad():
        out = reestimate_batch_norm(program, batches).module()(batches[0][0])
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_an_empty_loader_is_named() -> None:
    with pytest.raises(UserError, match="no batch"):
        reestimate_batch_norm(captured("resnet_a"), [])


def test_statistics_of_data_that_are_not_finite_are_refused() -> None:
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), torch.randn(2, 3, 4, 4))
    x = torch.randn(8, 3, 4, 4)
    x[5, 0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        reestimate_batch_norm(program, [(x, torch.zeros(8))])
