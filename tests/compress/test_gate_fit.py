"""Gates fitted to the dense network's outputs: against planted gates, least squares by the book, and gated networks."""

from __future__ import annotations

import torch
from nets import randomise_bn
from torch import Tensor, nn

from secateur.compress.heal.gate_fit import fit_gates, fold_gates
from secateur.compress.sensitivity.request import Request
from secateur.passes.capture import capture
from secateur.passes.gates import insert_gates
from secateur.passes.program import Program
from secateur.passes.prune import apply


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.outer = nn.Conv2d(6, 8, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.last((x + self.outer(self.inner(x).relu())).mean((2, 3)))


def _program(seed: int = 0) -> tuple[Program, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    model = randomise_bn(_Net()).double()
    x = torch.randn(60, 3, 6, 6, dtype=torch.float64)
    return capture(model, (x[:2],)), x, [(part, torch.zeros(len(part))) for part in x.split(20)]


def _out(program: Program, x: Tensor) -> Tensor:
    with torch.no_grad():
        return program.module()(x)


def test_folded_gates_compute_what_gates_compute() -> None:
    program, x, loader = _program()
    gates = 0.5 + torch.rand(14, dtype=torch.float64)
    gated = insert_gates(program)
    gated.source.values = gates[None]
    with torch.no_grad():
        wanted = gated.module(x)
    folded = program.clone()
    fold_gates(folded, Request(folded, loader), gates)
    torch.testing.assert_close(_out(folded, x), wanted)


def test_gates_that_were_lost_are_found_again() -> None:
    program, x, loader = _program(1)
    spoilt = program.clone()
    fold_gates(spoilt, Request(spoilt, loader), 1.0 + 0.3 * torch.rand(14, dtype=torch.float64))
    away = (_out(spoilt, x) - _out(program, x)).norm()
    found = fit_gates(program, spoilt, loader, ridge=1e-8, rounds=6)
    assert (_out(found, x) - _out(program, x)).norm() < 1e-3 * away


def test_one_round_is_ridge_regression_in_the_gates() -> None:
    """Gates of the last layer alone act linearly: the solution is in the book."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    x = torch.randn(40, 5, dtype=torch.float64)
    program = capture(model.eval(), (x[:2],))
    smaller = apply(program, {"0": range(6)})
    found = fit_gates(program, smaller, [(x, torch.zeros(40))], ridge=0.01, rounds=1)
    with torch.no_grad():
        hidden = model[1](model[0](x))[:, :6]
        last = model[2]
        products = (hidden[:, None] * last.weight[None, :, :6]).reshape(120, 6)
        missing = (model(x) - hidden @ last.weight[:, :6].T - last.bias).reshape(120)
        gram = products.T @ products
        step = torch.linalg.solve(gram + 0.01 * gram.diagonal().mean() * torch.eye(6), products.T @ missing)
        torch.testing.assert_close(found.module().get_submodule("2").weight, last.weight[:, :6] * (1 + step))


def test_a_pruned_network_comes_closer_and_nothing_else_changes() -> None:
    program, x, loader = _program(3)
    smaller = apply(program, {"inner": range(3), "stem": range(6)})
    before = {name: tensor.clone() for name, tensor in smaller.module().state_dict().items()}
    found = fit_gates(program, smaller, loader)
    assert (_out(found, x) - _out(program, x)).norm() < 0.8 * (_out(smaller, x) - _out(program, x)).norm()
    assert all(torch.equal(tensor, before[name]) for name, tensor in smaller.module().state_dict().items())
    again = fit_gates(program, smaller, loader)
    assert torch.equal(_out(again, x), _out(found, x))


def test_a_network_that_agrees_is_left_alone() -> None:
    program, x, loader = _program(4)
    assert torch.equal(_out(fit_gates(program, program, loader), x), _out(program, x))
