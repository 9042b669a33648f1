"""The Pareto frontier: the least predicted loss at each of a row of budgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ..cost.model import CostModel
from . import milp
from .limits import PLANNED, Limit
from .problem import Problem
from .search import exactly

ORDER = ("latency", "size", "memory", "macs", "params")
"""Of the budgets that were given, the first of these is varied."""


@dataclass(frozen=True)
class Point:
    """One plan on the frontier; costs are shares of the dense FP32 network.

    Attributes:
        delta_loss: Predicted rise of the loss.
        costs: Predicted costs by name: each that is limited, and `params` and `macs`.
        widths: Kept units by group, where some go.
        optimal: Proven: no plan within this budget has a smaller predicted loss.
    """

    delta_loss: float
    costs: dict[str, float]
    widths: dict[str, int]
    optimal: bool


@dataclass(frozen=True)
class Frontier:
    """Plans none of which is better than another in both loss and cost.

    Attributes:
        varied: Name of the budget that was varied; the others hold at every point.
        unit: What `delta_loss` is measured in.
        points: From the whole network to the narrowest.
    """

    varied: str
    unit: str
    points: tuple[Point, ...]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @staticmethod
    def load(path: Path) -> Frontier:
        """Reads what `save` wrote."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Frontier(raw["varied"], raw["unit"], tuple(Point(**point) for point in raw["points"]))


def frontier(
    problem: Problem, limits: Sequence[Limit], model: CostModel, *, unit: str, points: int, seconds: float
) -> Frontier:
    """Works out the frontier of loss and one cost, with the other budgets as they are.

    Args:
        problem: The problem of the plan.
        limits: Its limits, one a column.
        model: Parameters and multiply-accumulates.
        unit: What the loss is measured in.
        points: How many budgets are tried, evenly between the whole network and the least that any choice has.
        seconds: Time limit of each search.
    """
    given = {limit.budget for limit in limits}
    varied = next(name for name in ORDER if name in given)
    columns = np.array([limit.budget == varied for limit in limits])
    highest = problem.costs(problem.first[None])[0]
    lowest = _least(problem, columns, seconds)
    found: list[Point] = []
    for share in np.linspace(0.0, 1.0, points):
        bounds = np.where(columns, highest + share * (lowest - highest), problem.limits)
        solution = exactly(replace(problem, limits=bounds), seconds)
        if solution is None:
            continue
        point = _point(problem, limits, model, solution.position, solution.rise, (solution.gap or 0.0) <= milp.PROVEN)
        if not found or point.costs != found[-1].costs:
            found.append(point)
    return Frontier(varied, unit, tuple(found))


def _least(problem: Problem, columns: np.ndarray, seconds: float) -> np.ndarray:
    """The costs at which the varied budget, over all of its columns, is as small as it can be."""
    scaled = replace(problem, limits=np.where(columns, problem.costs(problem.last[None])[0], problem.limits))
    position = None
    if columns.sum() == 1:
        position = milp.least_cost(scaled, int(np.flatnonzero(columns)[0]), seconds=seconds)
    else:
        position = milp.nearest(scaled, seconds=seconds)
    return problem.costs((position if position is not None else problem.last)[None])[0]


def _point(
    problem: Problem, limits: Sequence[Limit], model: CostModel, position: np.ndarray, rise: float, optimal: bool
) -> Point:
    widths = {
        choice.group.name: int(width)
        for choice, width in zip(problem.choices, problem.widths(position), strict=True)
        if width < choice.group.width
    }
    counted = model.cost(widths)
    shares: dict[str, float] = {}
    for limit, cost in zip(limits, problem.costs(position[None])[0], strict=True):
        share = float(cost) / limit.dense
        shares[limit.label] = max(shares.get(limit.label, 0.0), round(share, 4))
    for name in PLANNED[:2]:
        shares[name] = round(getattr(counted, name) / max(getattr(model.dense, name), 1), 4)
    return Point(float(f"{rise:.3e}"), shares, widths, optimal)
