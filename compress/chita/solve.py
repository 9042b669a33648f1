"""One stage: from the problem at the present weights to sparse weights."""

from __future__ import annotations

from typing import Literal

from ...errors import UserError
from .backsolve import backsolve
from .blocks import backsolve_blocks
from .constraints import Constraint
from .coordinate_descent import coordinate_descent
from .iht import Watch, active_set, start
from .line_search import Point, step
from .problem import Problem
from .variables import Variables

Solver = Literal["bso", "cd", "step", "iht"]
"""How a stage is solved: `bso` and `cd` take the support of the largest weights and solve for its weights, exactly or
by coordinate descent; `step` takes that of one step of thresholding; `iht` searches for it, with an active set."""


def solve(
    problem: Problem,
    constraint: Constraint,
    solver: Solver,
    *,
    variables: Variables | None = None,
    block_size: int | None = None,
    steps: int = 50,
    sweeps: int = 10,
    watch: Watch | None = None,
) -> Point:
    """Minimises Q over the allowed patterns; every step lowers Q or leaves it as it is.

    Args:
        problem: Q.
        constraint: The allowed patterns.
        solver: See `Solver`.
        variables: Says where tensors end; for `block_size`.
        block_size: Solves for the weights of blocks of this size one by one (`bso` only).
        steps: At most so many steps of thresholding in a round of `iht`.
        sweeps: At most so many passes of `cd`.
        watch: Told every point on the way.

    Raises:
        UserError: The combination makes no sense.
    """
    if block_size is not None and solver != "bso":
        raise UserError(
            f"solver {solver} has no blocks",
            where="sparsify.block_size",
            why="blocks are for the exact solution by systems of bounded size",
            hint="take method='chita-bso' or 'chita++'",
        )
    at = start(problem, constraint)
    if watch:
        watch(at)
    if solver == "iht":
        at = active_set(problem, at, constraint, steps=steps, watch=watch)
    elif solver == "step":
        at = step(problem, at, constraint)
        if watch:
            watch(at)
    if solver == "cd":
        found = coordinate_descent(problem, at, sweeps=sweeps)
    elif block_size is not None:
        assert variables is not None
        return backsolve_blocks(problem, at.support, variables, block_size)
    else:
        found = backsolve(problem, at.support)
        found = found if found.value <= at.value else at
    if watch:
        watch(found)
    return found
