"""structured-chita from end to end on small networks, and its statistics against what they stand for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import randomise_bn
from torch import Tensor, nn

from secateur.compress.budget import Budget
from secateur.compress.chita.structured import Structured, structured_chita
from secateur.compress.chita.structured_model import Part, solve
from secateur.compress.chita.structured_stats import collect, gate_part, layer_parts
from secateur.compress.cost.model import count
from secateur.compress.heal.evaluate import cross_entropy
from secateur.compress.heal.ridge import reconstruct
from secateur.compress.plan import Plan
from secateur.compress.sensitivity.gate_ggn import estimate
from secateur.compress.sensitivity.request import Request
from secateur.errors import BudgetError, UserError
from secateur.export.targets import find_target
from secateur.passes.capture import capture
from secateur.passes.gates import insert_gates
from secateur.passes.program import Program
from secateur.passes.prune import apply

TARGET = find_target("ort-cpu")


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 16, 3, padding=1)
        self.between = nn.BatchNorm2d(16)
        self.outer = nn.Conv2d(16, 8, 3, padding=1)
        self.hidden = nn.Linear(8, 12)
        self.last = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.between(self.inner(x)).relu())).relu()
        return self.last(self.hidden(x.mean((2, 3))).relu())


def _network(seed: int = 0) -> tuple[Program, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    model = randomise_bn(_Residual()).double()
    x, y = torch.randn(48, 3, 6, 6, dtype=torch.float64), torch.randint(0, 5, (48,))
    return capture(model, (x[:2],)), list(zip(x.split(16), y.split(16), strict=True))


def _run(program: Program, loader: Any, **options: Any) -> Structured:
    given = {"budget": Budget(macs="50%"), "stages": 2, "samples": 48, **options}
    return structured_chita(program, loader, cross_entropy, target=TARGET, **given)


@pytest.mark.parametrize("options", [{}, {"search": "iht"}, {"model": "gates", "curvature": "loss"}, {"stages": 1}])
def test_a_plan_like_any_other_and_the_weights_that_healing_gives_again(options: dict[str, Any], tmp_path: Any) -> None:
    program, loader = _network()
    before = {name: tensor.clone() for name, tensor in program.module().state_dict().items()}
    found = _run(program, loader, **options)
    found.plan.check(program)
    found.plan.save(tmp_path / "plan.yaml")
    plan = Plan.load(tmp_path / "plan.yaml")
    assert plan.keep() == found.plan.keep() and plan.method == "structured-chita"
    smaller = apply(program, plan.keep())
    assert count(smaller).macs <= 0.5 * count(program).macs
    assert count(smaller) == plan.planned
    assert all(len(units) % 4 == 0 for units in plan.keep().values())
    again = reconstruct(program, smaller, plan.keep(), loader, samples=96, ridge=1e-3)
    for name, tensor in again.module().state_dict().items():
        assert torch.equal(tensor, found.program.module().state_dict()[name])
    assert _run(program, loader, **options).plan == found.plan
    assert all(torch.equal(tensor, before[name]) for name, tensor in program.module().state_dict().items())


def test_units_that_others_can_replace_go_first() -> None:
    program, loader = _network(1)
    with torch.no_grad():
        for name, slope in (("weight", 2.0), ("bias", 2.0)):
            # The last four channels are twice the first four, so they have the largest effect, and are spare.
            tensor = getattr(program.graph_module.get_submodule("inner"), name)
            tensor[12:] = slope * tensor[:4]
        norm = program.graph_module.get_submodule("between")
        for tensor in (norm.weight, norm.bias):
            tensor[12:] = tensor[:4]
        norm.running_mean[12:], norm.running_var[12:] = (
            2 * norm.running_mean[:4],
            4 * norm.running_var[:4] + 3 * norm.eps,
        )
    macs = count(apply(program, {"inner": range(12)})).macs
    found = _run(program, loader, budget=Budget(macs=f"{macs / 1e6}M"), stages=1, ridge=1e-8, ignore=("stem", "hidden"))
    (gone,) = (line.removed for line in found.plan.groups.values() if line.removed)
    assert len(gone) == 4 and len({unit % 12 for unit in gone} & {0, 1, 2, 3}) >= 3  # unit 4 is all but dead
    x = loader[0][0]
    with torch.no_grad():
        torch.testing.assert_close(found.program.module()(x), program.module()(x), rtol=0, atol=1e-4)


def test_gates_matrix_is_the_mean_of_exact_gauss_newton_matrices() -> None:
    program, loader = _network(2)
    request = Request(program, loader, cross_entropy, seed=0, samples=48)
    exact = estimate(request, interactions=True).interactions
    assert exact is not None
    drawn = np.mean([collect(Request(program, loader, cross_entropy, s, 48), draws=8).gates for s in range(12)], axis=0)
    assert np.linalg.norm(drawn - exact) < 0.15 * np.linalg.norm(exact)


def test_moments_are_those_of_what_the_layers_read_and_units_know_their_columns() -> None:
    program, loader = _network(3)
    statistics = collect(Request(program, loader, cross_entropy, 0, 48))
    by_path = {seen.path: seen for seen in statistics.layers}
    assert list(by_path) == ["inner", "outer", "hidden", "last"]
    x = torch.cat([batch for batch, _ in loader])
    module = program.module()
    with torch.no_grad():
        stem = module.norm(module.stem(x)).relu()
        pooled = (stem + module.outer(module.between(module.inner(stem)).relu())).relu().mean((2, 3))
    rows = torch.cat([pooled, torch.ones(48, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(by_path["hidden"].moments, rows.T @ rows)
    first = insert_gates(program).groups
    stem_units = np.arange(first["stem"][0], first["stem"][0] + 8)
    assert by_path["hidden"].units.tolist() == [*stem_units, -1]
    assert by_path["inner"].units.tolist() == [*np.repeat(stem_units, 9), -1]
    parts = layer_parts(statistics, 1e-3)
    alone = np.zeros(len(statistics.gates))
    for part in parts:
        for unit in np.unique(part.units[part.units >= 0]):
            k = part.units == unit
            alone[unit] += np.einsum("rc,cd,rd->", part.weights[:, k], part.moments[np.ix_(k, k)], part.weights[:, k])
    own = slice(first["inner"][0], first["inner"][0] + 16)
    # Scaled to agree, over a layer, with the gates' matrix; up to the ridge.
    assert alone[own].sum() == pytest.approx(np.diag(statistics.gates)[own].sum(), rel=0.01)


def test_free_gates_fold_into_weights() -> None:
    """The solution of the model of gates is least squares in the gates, by the book."""
    program, loader = _network(4)
    statistics = collect(Request(program, loader, cross_entropy, 0, 48))
    part: Part = gate_part(statistics, 1e-2)
    removed = np.zeros(len(statistics.gates), dtype=bool)
    removed[[0, 3, 9]] = True
    value, gates = solve(part, removed)
    root = np.linalg.cholesky(part.moments).T
    wanted = np.linalg.lstsq(root[:, ~removed], root.sum(1), rcond=None)[0]
    np.testing.assert_allclose(gates[0, ~removed], wanted, rtol=1e-6)
    assert value <= part.moments[np.ix_(removed, removed)].sum() + 1e-12


def test_what_cannot_be_done_is_said() -> None:
    program, loader = _network()
    with pytest.raises(BudgetError, match="cannot be met"):
        _run(program, loader, budget=Budget(macs="1%"))
    with pytest.raises(UserError, match="no budget to plan for"):
        _run(program, loader, budget=Budget(accuracy_drop=1.0))
    with pytest.raises(UserError, match=r"unknown search 'swaps'.*swap"):
        _run(program, loader, search="swaps")
    with pytest.raises(UserError, match="stages"):
        _run(program, loader, stages=0)
    with pytest.raises(UserError, match="matches no group"):
        _run(program, loader, ignore=("nothing*",))
