"""The ridge and the weight of the gradient: the search finds small λ together with large α."""

import pytest
import torch
from torch import nn

from secateur.compress.chita import stage as stages
from secateur.compress.chita.backsolve import Path
from secateur.compress.chita.constraints import TopK
from secateur.compress.chita.data_matrix import StoredMatrix
from secateur.compress.chita.problem import Problem
from secateur.compress.chita.stage import RATES, RIDGES, Stage, Stream, tune
from secateur.compress.chita.variables import Variable, Variables
from secateur.passes.capture import capture


def newton_stage() -> Stage:
    """A loss that asks for a Newton step of α = 1 with a small λ: rows of norm about 10, and pruning to make up for."""
    generator = torch.Generator().manual_seed(0)
    size = 96
    matrix = StoredMatrix(torch.randn(8, size, generator=generator))
    center = torch.randn(size, generator=generator)
    variables = Variables((Variable("w", torch.Size((size,)), 0, 0),), {})

    def loss_of(w: torch.Tensor) -> float:
        return float((matrix.forward(w - center) + 1.0).square().mean()) + 1e-9

    return Stage(Problem(matrix, center, 1.0), TopK(48, (slice(0, size),)), variables, loss_of)


def grid_best(stage: Stage) -> float:
    """The least loss of all candidates."""
    path = Path(stage.problem, stage.constraint.project(stage.problem.center))
    return min(stage.loss_of(path.weights(ridge, rate * ridge)) for ridge in RIDGES for rate in RATES)


def test_small_ridge_and_large_gradient_weight_are_found_together():
    stage = newton_stage()
    found = tune(stage)
    assert found.ridge <= 1e-2
    assert found.ridge * found.rate == pytest.approx(1.0, rel=0.5)
    assert min(found.losses.values()) < 2 * grid_best(stage)


def test_without_moves_that_keep_the_gradient_weight_the_search_stops_short(monkeypatch):
    stage = newton_stage()
    whole = min(tune(stage).losses.values())
    monkeypatch.setattr(stages, "_MOVES", ((1, 0), (-1, 0), (0, 1), (0, -1)))
    assert min(tune(stage).losses.values()) > 2 * whole


def test_a_stage_that_began_where_the_data_ended_called_the_loader_empty():
    program = capture(nn.Linear(3, 2).eval(), (torch.zeros(2, 3),))
    stream = Stream([(torch.zeros(8, 3), torch.zeros(8, dtype=torch.long))], program, torch.device("cpu"))
    assert [sum(batch.size for batch in stream.take(8)) for _ in range(3)] == [8, 8, 8]
