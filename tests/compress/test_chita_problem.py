"""The solvers of CHITA against dense oracles in double precision."""

import math
from itertools import pairwise

import pytest
import torch

from secateur.compress.chita.backsolve import Path, backsolve
from secateur.compress.chita.blocks import backsolve_blocks, block_spans
from secateur.compress.chita.constraints import Blocks, PerLayer, TopK
from secateur.compress.chita.coordinate_descent import coordinate_descent
from secateur.compress.chita.data_matrix import StoredMatrix
from secateur.compress.chita.iht import start
from secateur.compress.chita.line_search import Point, first_breakpoint, step
from secateur.compress.chita.nm import NM
from secateur.compress.chita.problem import Problem
from secateur.compress.chita.solve import solve
from secateur.compress.chita.variables import Variable, Variables
from secateur.errors import UserError

SHAPES = (torch.Size((8, 4)), torch.Size((4, 8)))
P = sum(shape.numel() for shape in SHAPES)


def variables() -> Variables:
    starts = (0, SHAPES[0].numel())
    return Variables(
        tuple(Variable(f"{i}.weight", s, b, 1) for i, (s, b) in enumerate(zip(SHAPES, starts, strict=True))), {}
    )


def problem(n=20, p=P, ridge=1e-2, offset=0.0, seed=0) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(p, p, generator=generator) / p**0.5  # columns that interact
    return Problem(
        StoredMatrix(torch.randn(n, p, generator=generator) @ mix), torch.randn(p, generator=generator), ridge, offset
    )


def support_of(problem: Problem, k: int) -> torch.Tensor:
    mask = torch.zeros(len(problem.center), dtype=torch.bool)
    mask[problem.center.abs().topk(k).indices] = True
    return mask


def test_the_objective_is_the_quadratic_model_of_the_loss():
    q = problem(offset=0.3)
    a, center = q.matrix.values.double(), q.center.double()
    n = len(a)
    gradient, hessian = a.sum(0) / n, a.T @ a / n

    def model(w):
        d = w.double() - center
        return n * (0.3 * gradient @ d + 0.5 * d @ hessian @ d + 0.5 * q.ridge * d @ d)

    w1, w2 = torch.randn(2, P)
    assert q.value(w1) - q.value(w2) == pytest.approx(float(model(w1) - model(w2)), rel=1e-5)
    w = w1.clone().double().requires_grad_()
    model(w).backward()
    assert torch.allclose(q.gradient(w1, q.residual(w1)).double(), w.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("n", [10, 200])
@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_backsolve_is_the_dense_solution(n, offset):
    q = problem(n=n, offset=offset)
    support = support_of(q, 25)
    a, center = q.matrix.values.double(), q.center.double()
    inside = a[:, support]
    right = q.pull * center[support] + inside.T @ (a @ center - offset)
    expected = torch.linalg.solve(inside.T @ inside + q.pull * torch.eye(25, dtype=torch.float64), right)
    found = backsolve(q, support)
    assert torch.allclose(found.w[support].double(), expected, rtol=1e-3, atol=1e-4)
    assert (found.w[~support] == 0).all()


def test_backsolve_is_optimal_brain_surgery_of_all_pruned_weights_together():
    q = problem()
    support = support_of(q, 25)
    a, center = q.matrix.values.double(), q.center.double()
    inverse = torch.linalg.inv(a.T @ a / len(a) + q.ridge * torch.eye(P, dtype=torch.float64))
    gone = ~support
    inner = torch.linalg.inv(inverse[gone][:, gone])
    expected = center - inverse[:, gone] @ inner @ center[gone]
    found = backsolve(q, support)
    assert torch.allclose(found.w.double(), torch.where(support, expected, 0.0), rtol=1e-3, atol=1e-4)
    assert found.value == pytest.approx(float(0.5 * len(a) * center[gone] @ inner @ center[gone]), rel=1e-4)


def test_one_decomposition_gives_the_solutions_of_all_ridges_and_weights_of_the_gradient():
    q = problem()
    support = support_of(q, 30)
    path = Path(q, support)
    for ridge, alpha in ((1e-3, 0.0), (1e-1, 0.0), (1e-2, 0.5)):
        alone = backsolve(Problem(q.matrix, q.center, ridge, alpha), support)
        assert torch.allclose(path.weights(ridge, alpha), alone.w, atol=1e-4)


def test_the_breakpoint_is_where_the_support_changes():
    for seed in range(20):
        q = problem(seed=seed, offset=0.2)
        k = TopK(20, (slice(0, P),), floor=0)
        at = start(q, k)
        gradient = q.gradient(at.w, at.residual)
        tau = first_breakpoint(at.w, gradient, at.support, k.rivals(gradient, at.support))
        assert 0 < tau < math.inf
        w, g = at.w.double(), gradient.double()
        assert (k.project(w - tau * (1 - 1e-5) * g) == at.support).all()
        assert (k.project(w - tau * (1 + 1e-5) * g) != at.support).any()


def test_the_step_on_the_same_support_is_the_minimum_along_the_line():
    q = problem(ridge=10.0)
    k = PerLayer.of(variables(), 0.02)  # nearly everything is kept, so that no rival is near
    at = start(q, k)
    found = step(q, at, k, trials=0)
    along = torch.where(at.support, q.gradient(at.w, at.residual), 0.0)
    values = [q.value(at.w - tau * along) for tau in torch.linspace(0, 0.1, 2001).tolist()]
    assert found.value <= min(values) * (1 + 1e-5)


CONSTRAINTS = {
    "global": lambda: TopK.of(variables(), 0.6),
    "layer": lambda: PerLayer.of(variables(), 0.6),
    "2:4": lambda: NM.of(variables(), 2, 4)[0],
    "blocks": lambda: Blocks.of(variables(), 0.5, (2, 2)),
}


@pytest.mark.parametrize("solver", ["bso", "cd", "step", "iht"])
@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_the_objective_never_rises_and_the_pattern_holds(solver, name, offset):
    constraint = CONSTRAINTS[name]()
    for seed in range(5):
        q = problem(seed=seed, offset=offset, ridge=1e-3)
        seen: list[Point] = []
        found = solve(q, constraint, solver, watch=seen.append)
        values = [point.value for point in seen]
        assert all(after <= before for before, after in pairwise(values))
        assert found.value == values[-1] < values[0]
        assert found.value == pytest.approx(q.value(found.w), rel=1e-4)
        budget = int(constraint.project(q.center).sum())
        for point in seen:
            assert int((point.w != 0).sum()) <= budget
        kept = constraint.project(torch.where(found.w != 0, 1.0 + found.w.abs(), 0.0))
        assert not ((found.w != 0) & ~kept).any()


def test_searching_for_the_support_lowers_the_objective_below_that_of_magnitude():
    better = 0
    for seed in range(10):
        q = problem(seed=seed, ridge=1e-3, n=60)
        k = TopK.of(variables(), 0.6)
        iht, bso = solve(q, k, "iht"), solve(q, k, "bso")
        assert iht.value <= bso.value * (1 + 1e-6)
        better += iht.value < 0.9 * bso.value
    assert better >= 7


def test_coordinate_descent_by_blocks_is_that_of_one_weight_after_another():
    q = problem(n=40)
    at = start(q, TopK.of(variables(), 0.4))
    found = coordinate_descent(q, at, sweeps=2, tolerance=0.0)
    a, w = q.matrix.values.double(), at.w.double()
    residual = at.residual.double()
    for _ in range(2):
        for i in at.support.nonzero()[:, 0].tolist():
            column = a[:, i]
            slope = column @ residual + q.pull * (w[i] - q.center[i])
            change = -slope / (column @ column + q.pull)
            w[i] += change
            residual = residual + column * change
    assert torch.allclose(found.w.double(), w, atol=1e-4)


def test_coordinate_descent_ends_where_backsolve_does():
    q = problem(n=200, ridge=1e-2)
    at = start(q, TopK.of(variables(), 0.5))
    found = coordinate_descent(q, at, sweeps=500, tolerance=0.0)
    assert torch.allclose(found.w, backsolve(q, at.support).w, atol=1e-3)


def test_blocks_do_not_cross_tensors_and_are_the_solution_of_the_block_diagonal_fisher():
    spans = list(block_spans(variables(), 12))
    assert spans == [slice(0, 16), slice(16, 32), slice(32, 48), slice(48, 64)]
    q = problem()
    support = support_of(q, 30)
    found = backsolve_blocks(q, support, variables(), 12)
    for span in spans:
        part = Problem(StoredMatrix(q.matrix.values[:, span]), q.center[span], q.ridge)
        assert torch.allclose(found.w[span], backsolve(part, support[span]).w, atol=1e-5)


def test_one_block_of_everything_is_backsolve():
    q = problem()
    whole = Variables((Variable("w", torch.Size((P, 1)), 0, 1),), {})
    support = support_of(q, 30)
    assert torch.allclose(backsolve_blocks(q, support, whole, P).w, backsolve(q, support).w, atol=1e-6)


def test_gradients_that_are_zero_or_repeat_do_no_harm():
    a = torch.randn(1, P).repeat(30, 1)
    a[:, :10] = 0
    for q in (Problem(StoredMatrix(a), torch.randn(P), 1e-5), Problem(StoredMatrix(a * 0), torch.randn(P), 1e-5)):
        for solver in ("bso", "cd", "iht"):
            found = solve(q, TopK.of(variables(), 0.5), solver)
            assert torch.isfinite(found.w).all()
            assert found.value <= start(q, TopK.of(variables(), 0.5)).value


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan, math.inf])
def test_a_ridge_that_makes_the_system_singular_is_refused(ridge):
    with pytest.raises(UserError, match="ridge must be above 0"):
        problem(ridge=ridge)
