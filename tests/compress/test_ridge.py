"""Reconstruction against closed forms: exact where the lost is a function of what remains, least squares elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.compress.heal.heal import heal
from secateur.compress.heal.ridge import reconstruct
from secateur.compress.heal.settings import HealSettings
from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.prune import apply

SAMPLES = 64


def _program(model: nn.Module, *shape: int) -> tuple[Program, Tensor, list[tuple[Tensor, Tensor]]]:
    x = torch.randn(SAMPLES, *shape, dtype=torch.float64)
    return (
        capture(model.double().eval(), (x[:2],)),
        x,
        [(x[i : i + 16], torch.zeros(16)) for i in range(0, SAMPLES, 16)],
    )


def _out(program: Program, x: Tensor) -> Tensor:
    with torch.no_grad():
        return program.module()(x)


class _TwoConvs(nn.Module):
    """The second convolution reads channels of which the last is a copy of the first."""

    def __init__(self, second: nn.Module, spatial: int = 2) -> None:
        super().__init__()
        conv = nn.Conv2d if spatial == 2 else nn.Conv1d
        self.first = conv(3, 6, 3, padding=1)
        self.second = second
        with torch.no_grad():
            self.first.weight[5] = self.first.weight[0]
            self.first.bias[5] = self.first.bias[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


@pytest.mark.parametrize(
    ("second", "shape"),
    [
        (nn.Conv2d(6, 4, 3, padding=1), (3, 9, 9)),
        (nn.Conv2d(6, 4, 3, stride=2, dilation=2, bias=False), (3, 11, 9)),
        (nn.Conv2d(6, 4, (1, 3), padding="same"), (3, 6, 6)),
        (nn.Conv1d(6, 4, 5, stride=2, padding=2), (3, 17)),
        (nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 5)), (3, 4, 4)),
    ],
)
def test_a_channel_that_others_can_replace_is_replaced(second: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    program, x, loader = _program(_TwoConvs(second, len(shape) - 1), *shape)
    keep = {"first": range(5)}
    smaller = apply(program, keep)
    refitted = reconstruct(program, smaller, keep, loader, ridge=1e-12)
    dense = _out(program, x)
    assert (_out(smaller, x) - dense).abs().max() > 1e-2
    torch.testing.assert_close(_out(refitted, x), dense, rtol=0, atol=1e-5)


def test_weights_solve_the_ridge_regression() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 6))
    program, x, loader = _program(model, 7)
    keep = {"0": (0, 2, 3, 5, 7)}
    smaller = apply(program, keep)
    refitted = reconstruct(program, smaller, keep, loader, ridge=0.1)
    layer = smaller.graph_module.get_submodule("2")
    assert isinstance(layer, nn.Linear)
    # The first layer loses rows only: its outputs that remain are exact, so it stays, and the second sees exact inputs.
    hidden = torch.cat([_out(program, x).new_ones(SAMPLES, 1)], 1)
    first = program.graph_module.get_submodule("0")
    with torch.no_grad():
        read = torch.cat([first(x).relu()[:, list(keep["0"])], hidden], 1)  # type: ignore[operator]
        old = torch.cat([layer.weight, layer.bias[:, None]], 1)
        strength = 0.1 * (read.T @ read).diagonal().mean()
        # The ridge pulls towards the old weights: ordinary least squares with extra equations.
        equations = torch.cat([read, strength.sqrt() * torch.eye(6, dtype=torch.float64)])
        wanted = torch.cat([_out(program, x), strength.sqrt() * old.T])
        solution = torch.linalg.lstsq(equations, wanted).solution.T
    found = refitted.graph_module.get_submodule("2")
    assert isinstance(found, nn.Linear)
    torch.testing.assert_close(torch.cat([found.weight, found.bias[:, None]], 1), solution)


def test_a_residual_network_comes_closer_and_nothing_else_changes() -> None:
    torch.manual_seed(2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(8)
            self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
            self.inner = nn.Conv2d(8, 8, 3, padding=1)
            self.outer = nn.Conv2d(8, 8, 1)
            self.fc = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.stem(x)).relu()
            x = self.depth(x).relu()
            x = x + self.outer(self.inner(x).relu())
            return self.fc(x.mean((2, 3)))

    program, x, loader = _program(Net(), 3, 8, 8)
    keep = {"inner": (0, 1, 5, 7), "stem": range(6)}
    smaller = apply(program, keep)
    before = {n: t.clone() for n, t in smaller.module().state_dict().items()}
    seen: list[tuple[int, int]] = []
    refitted = reconstruct(program, smaller, keep, loader, progress=lambda done, total: seen.append((done, total)))
    again = reconstruct(program, smaller, keep, loader)
    dense = _out(program, x)
    assert (_out(refitted, x) - dense).norm() < 0.5 * (_out(smaller, x) - dense).norm()
    assert seen == [(i, 4) for i in range(1, 5)]
    after, twice = refitted.module().state_dict(), again.module().state_dict()
    for name, tensor in smaller.module().state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(after[name], twice[name])
        if name.startswith(("norm", "depth")):
            assert torch.equal(after[name], tensor)


def test_large_values_take_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compress.heal.ridge._VALUE_BYTES", 16 * 8 * 8)
    program, _, loader = _program(nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 6)), 7)

    def one_batch() -> Iterator[tuple[Tensor, Tensor]]:
        yield loader[0]
        pytest.fail("more than 16 samples are read")

    smaller = apply(program, {"0": range(4)})
    reconstruct(program, smaller, {"0": range(4)}, one_batch())


def test_pixels_are_drawn_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.compress.heal.refit._EQUATIONS_PER_WEIGHT", 4)
    monkeypatch.setattr("secateur.compress.heal.refit._PATCH_ELEMENTS", 5000)
    torch.manual_seed(3)
    program, x, loader = _program(_TwoConvs(nn.Conv2d(6, 4, 3)), 3, 12, 12)
    keep = {"first": np.arange(5)}
    refitted = reconstruct(program, apply(program, keep), keep, loader, ridge=1e-12)
    torch.testing.assert_close(_out(refitted, x), _out(program, x), rtol=0, atol=1e-5)


def test_healing_by_ridge_trains_nothing_and_keeps_the_best_repair() -> None:
    torch.manual_seed(4)
    program, x, loader = _program(_TwoConvs(nn.Sequential(nn.Flatten(), nn.Linear(6 * 16, 5))), 3, 4, 4)
    labels = [(batch, _out(program, batch).argmax(1)) for batch, _ in loader]
    keep = {"first": range(5)}
    settings = HealSettings(method="ridge", epochs=3, ridge=1e-12)
    result = heal(apply(program, keep), labels, teacher=program, keep=keep, settings=settings, validation=labels)
    assert list(result.starts) == ["pruned", "reconstructed"] and result.start == "reconstructed"
    assert len(result.history) == 1 and result.history[0]["metric"] == 1.0
    torch.testing.assert_close(_out(result.program, x), _out(program, x), rtol=0, atol=1e-5)


def test_ridge_without_a_plan_says_what_to_pass() -> None:
    program, _, loader = _program(nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 6)), 7)
    with pytest.raises(UserError, match="needs the dense network and the plan"):
        heal(program, loader, settings=HealSettings(method="both"))


def test_weights_that_may_not_change_stay_and_the_others_solve_their_own_regression() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    program, x, loader = _program(model, 6)
    sparse = program.clone()
    free = torch.rand(4, 8) < 0.5
    free[1] = False  # a row without any: its bias alone is fitted
    layer = sparse.graph_module.get_submodule("2")
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight.mul_(free)
    nothing = torch.zeros(8, 6, dtype=torch.bool)
    refitted = reconstruct(program, sparse, {}, loader, ridge=0.1, free={"0.weight": nothing, "2.weight": free})
    found = refitted.graph_module.get_submodule("2")
    assert isinstance(found, nn.Linear)
    assert not bool(found.weight[~free].any())
    first = program.graph_module.get_submodule("0")
    assert isinstance(first, nn.Linear)
    torch.testing.assert_close(refitted.graph_module.get_submodule("0").weight, first.weight, rtol=0, atol=0)
    with torch.no_grad():
        read = torch.cat([first(x).relu(), x.new_ones(SAMPLES, 1)], 1)
        strength = (0.1 * read.square().sum(0).mean()).sqrt()
        for row in range(4):
            index = torch.cat([free[row].nonzero().squeeze(1), torch.tensor([8])])
            old = torch.cat([layer.weight[row], layer.bias[row, None]])[index]
            equations = torch.cat([read[:, index], strength * torch.eye(len(index), dtype=torch.float64)])
            wanted = torch.cat([_out(program, x)[:, row], strength * old])
            solution = torch.linalg.lstsq(equations, wanted[:, None]).solution.squeeze(1)
            torch.testing.assert_close(torch.cat([found.weight[row], found.bias[row, None]])[index], solution)


class _Tied(nn.Module):
    """Two layers with one weight, and one called by its product as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.head = (nn.Linear(*s) for s in ((5, 8), (8, 8), (8, 8), (8, 3)))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.first(x).relu()).relu()).relu())


def test_a_weight_that_two_layers_share_is_left_as_it_is_by_least_squares() -> None:
    torch.manual_seed(4)
    program, _, loader = _program(_Tied(), 5)
    group = program.groups[0].name
    keep = {group: range(6)}
    smaller = apply(program, keep)
    settings = HealSettings(method="ridge")
    healed = heal(smaller, loader, lambda y, _: y.square().mean(), teacher=program, keep=keep, settings=settings)
    found = dict(healed.starts["reconstructed"].module().named_parameters())
    shared = [name for name in found if name in {"a.weight", "b.weight"}]
    before = dict(smaller.module().named_parameters())
    assert shared and all(torch.equal(found[name], before[name]) for name in shared)
    assert not torch.equal(found["head.weight"], before["head.weight"])


def test_frozen_weights_and_biases_stay() -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    model[2].bias.requires_grad_(False)
    model[4].weight.requires_grad_(False)
    program, _, loader = _program(model, 5)
    keep = {"0": range(6)}
    smaller = apply(program, keep)
    found = dict(reconstruct(program, smaller, keep, loader).module().named_parameters())
    before = dict(smaller.module().named_parameters())
    assert torch.equal(found["2.bias"], before["2.bias"]) and not torch.equal(found["2.weight"], before["2.weight"])
    assert torch.equal(found["4.weight"], before["4.weight"]) and torch.equal(found["4.bias"], before["4.bias"])


def test_data_that_are_not_finite_are_refused() -> None:
    torch.manual_seed(6)
    program, x, _ = _program(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), 5)
    x[3, 2] = float("nan")
    keep = {"0": range(6)}
    with pytest.raises(UserError, match="not finite") as refused:
        reconstruct(program, apply(program, keep), keep, [(x, torch.zeros(SAMPLES))])
    assert refused.value.where == "0"
