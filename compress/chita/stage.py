"""What the methods share: a stage's problem, its pattern, and how good given weights are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, LossFn
from ..sensitivity.batches import Batch, batch_loss, read_batches
from .backsolve import Path
from .constraints import Constraint
from .problem import Problem
from .variables import Variables

RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidates for λ."""

RATES = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Candidates for α / λ: where the curvature is below λ, the step is that of gradient descent at this rate.

High ones matter: most of a trained network's samples have next to no gradient, so that a λ small enough for the others
to be compensated leaves α far below the 1 of a Newton step at low rates."""

LOW_RATES = RATES[:6]
"""For solvers other than the one that `tune` tries: blocks that each take the whole step go too far together."""

_GAIN = 1e-3
"""The search ends where the loss falls by less than this share."""

_MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, -2), (-1, 2))
"""Steps on the grid of λ and α / λ; the last two change λ and leave α as it is."""

_FIRST_RATES = (0.0, 1.0, 30.0)
"""α / λ of the coarse grid that the search begins with."""


@dataclass(frozen=True)
class Stage:
    """A stage of a method.

    Attributes:
        problem: Q at the present weights.
        constraint: The allowed patterns.
        variables: What the vectors consist of.
        loss_of: Mean loss on held-out training samples of a network with weights [p].
        seed: Of random choices.
        block_size: Of a block-diagonal Fisher.
        path: Its solutions on the support of the largest weights, if they are at hand.
    """

    problem: Problem
    constraint: Constraint
    variables: Variables
    loss_of: Callable[[Tensor], float]
    seed: int = 0
    block_size: int | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Tuned:
    """What `tune` chose.

    Attributes:
        ridge: λ.
        rate: α / λ.
        losses: Held-out losses of what was tried, by `"λ, α / λ"`.
        path: The solutions on the support of the largest weights.
    """

    ridge: float
    rate: float
    losses: dict[str, float]
    path: Path


class Stream:
    """Training samples, on and on: a stage reads where the one before has stopped."""

    def __init__(self, loader: Loader, program: Program, device: torch.device) -> None:
        """Args: device: Where the network runs."""
        self._loader, self._program, self._device = loader, program, device
        self._passes, self._seen = 0, False
        self._open: Iterator[Any] | None = None

    def take(self, samples: int) -> list[Batch]:
        """So many samples; fewer if a whole pass over the data holds fewer.

        Raises:
            UserError: The loader is empty or yields no batches.
        """
        taken: list[Batch] = []
        begun = self._passes
        while (left := samples - sum(batch.size for batch in taken)) > 0 and self._passes <= begun + 1:
            if self._open is None:
                set_epoch = getattr(self._loader, "set_epoch", None)
                if callable(set_epoch):
                    set_epoch(self._passes)
                self._open = iter(self._loader)
            first = next(self._open, None)
            if first is None:
                if not self._seen:
                    read_batches((), samples, self._program, self._device)  # says that the loader is empty
                self._open = None
                self._passes += 1
                continue
            self._seen = True
            taken += read_batches(itertools.chain((first,), self._open), left, self._program, self._device)
        return taken


class HeldOut:
    """The loss on samples that gave no gradients."""

    def __init__(self, program: Program, batches: Sequence[Batch], loss: LossFn, variables: Variables) -> None:
        """Args: program: Its weights are replaced while the loss is computed, and put back."""
        self._program, self._batches, self._loss, self._variables = program, batches, loss, variables
        self.samples = sum(batch.size for batch in batches)

    def __call__(self, w: Tensor) -> float:
        """Mean loss of the network with weights [p]; infinite if it overflows."""
        before = self._variables.flatten(self._variables.tensors(self._program))
        total = 0.0
        try:
            self._variables.write(self._program, w)
            with eval_mode(self._program.graph_module), torch.no_grad():
                for batch in self._batches:
                    total += batch.size * float(batch_loss(self._program, self._loss, batch))
        except UserError as error:
            if error.what.startswith("the loss is"):
                return float("inf")
            raise
        finally:
            self._variables.write(self._program, before)
        return total / self.samples


def tune(
    stage: Stage,
    *,
    ridges: Sequence[float] = RIDGES,
    rates: Sequence[float] = RATES,
    near: tuple[float, float] | None = None,
) -> Tuned:
    """The λ and α whose exact solution on the support of the largest weights has the least held-out training loss.

    One decomposition serves all. The search walks downhill on the grid: λ, α / λ, or λ with α as it is.

    Args:
        stage: Its ridge does not matter; its offset, a number, is added to every α.
        ridges: Candidates for λ, rising.
        rates: Candidates for α / λ, rising.
        near: λ and α / λ of the stage before, which are looked at besides a coarse grid.
    """
    path = Path(stage.problem, stage.constraint.project(stage.problem.center))
    given = 0.0 if isinstance(stage.problem.offset, Tensor) else stage.problem.offset
    losses: dict[tuple[int, int], float] = {}

    def loss(place: tuple[int, int]) -> float:
        if place not in losses:
            losses[place] = stage.loss_of(path.weights(ridges[place[0]], given + rates[place[1]] * ridges[place[0]]))
        return losses[place]

    # Small λ are a plateau on which a walk stays, so that every stage looks at the whole grid first, coarsely.
    seen = {_nearest(rates, rate) for rate in _FIRST_RATES}
    coarse = list(itertools.product(range(0, len(ridges), 2), sorted(seen)))
    if near is not None:
        coarse.append((_nearest(ridges, near[0]), _nearest(rates, near[1])))
    best = min(coarse, key=loss)
    while True:
        around = [(best[0] + i, best[1] + j) for i, j in _MOVES]
        around = [(i, j) for i, j in around if 0 <= i < len(ridges) and 0 <= j < len(rates)]
        found = min(around, key=loss, default=best)
        if loss(found) >= loss(best) * (1.0 - _GAIN):
            names = {f"{ridges[i]:g}, {rates[j]:g}": round(value, 6) for (i, j), value in losses.items()}
            return Tuned(ridges[best[0]], rates[best[1]], names, path)
        best = found


def _nearest(values: Sequence[float], wanted: float) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i] - wanted))
