"""Methods of sparsity by name. A new one is one file and one entry here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from .baselines import cbs, magnitude, mfac, woodfisher
from .chita.schedule import Schedule
from .chita.solve import Solver, solve
from .chita.stage import Stage


@dataclass(frozen=True)
class MethodInfo:
    """A method.

    Attributes:
        solve: From a stage to its weights [p]; the solver is that of the settings.
        stages: How many by default.
        schedule: Of the stages, by default.
        uses_gradient: Whether the first-order term is worth its while by default: away from a minimum.
        needs_data: Whether it takes gradients.
        refits: Whether layers are refitted to the dense network by default.
        options: Options that it reads besides those of all methods that take gradients; see `sparsify_options`.
    """

    solve: Callable[[Stage, Solver], Tensor]
    stages: int = 1
    schedule: Schedule = "poly"
    uses_gradient: bool = False
    needs_data: bool = True
    refits: bool = False
    options: tuple[str, ...] = ()


def _chita(stage: Stage, solver: Solver) -> Tensor:
    if solver == "bso" and stage.path is not None and stage.block_size is None:
        offset = stage.problem.offset
        return stage.path.weights(stage.problem.ridge, 0.0 if isinstance(offset, Tensor) else offset)
    return solve(stage.problem, stage.constraint, solver, variables=stage.variables, block_size=stage.block_size).w


def _largest(stage: Stage, _: Solver) -> Tensor:
    return magnitude.prune(stage.problem.center, stage.constraint)


METHODS: Mapping[str, MethodInfo] = {
    "reconstruct": MethodInfo(_largest, stages=4, needs_data=False, refits=True),
    "chita-bso": MethodInfo(lambda stage, _: _chita(stage, "bso"), options=("model", "first_order", "block_size")),
    "chita-cd": MethodInfo(lambda stage, _: _chita(stage, "cd"), options=("model", "first_order")),
    "chita": MethodInfo(lambda stage, _: _chita(stage, "iht"), options=("model", "first_order")),
    "chita++": MethodInfo(
        _chita, stages=15, uses_gradient=True, options=("model", "first_order", "block_size", "solver")
    ),
    "cbs": MethodInfo(lambda stage, _: cbs.prune(stage), options=("first_order",)),
    "m-fac": MethodInfo(lambda stage, _: mfac.prune(stage), stages=16, schedule="geometric", options=("block_size",)),
    "magnitude": MethodInfo(_largest, needs_data=False),
    "woodfisher": MethodInfo(lambda stage, _: woodfisher.prune(stage), options=("block_size",)),
}
