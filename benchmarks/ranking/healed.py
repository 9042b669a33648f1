"""Accuracy after the same few epochs of training for every ranking, at equal budgets."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.compress.cost.model import count
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.compress.heal.heal import heal

from .cases import Ranking
from .cut import append, planned
from .setup import LOSS, Setup


@dataclass(frozen=True)
class Healed:
    """A network that was cut and trained.

    Attributes:
        label: Of the ranking.
        seed: Of the ranking; the seed of the training is that of the recipe.
        removed: Share of the resource that the budget removes.
        resource: "macs" or "params".
        epochs: Of training.
        macs: Share that is left; None if the budget cannot be met.
        params: Share that is left.
        start: Accuracy on the test set before training, after batch norm was re-estimated.
        end: Accuracy on the test set after training.
        seconds: Of training.
    """

    label: str
    seed: int
    removed: float
    resource: str
    epochs: float
    macs: float | None = None
    params: float | None = None
    start: float | None = None
    end: float | None = None
    seconds: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What it was asked, without what was found."""
        return self.label, self.seed, self.removed, self.resource, self.epochs


def heal_all(
    setup: Setup,
    rankings: Iterable[Ranking],
    removals: Sequence[float],
    resources: Sequence[str],
    epochs: float,
    path: Path,
    say: Callable[[str], None],
) -> None:
    """Cuts and trains by every ranking at every budget, residual streams as the recipe has them; see `cut_all`."""
    known = {healed.key for healed in stored(path)}
    dense = count(setup.program)
    settings = setup.recipe.heal.model_copy(update={"epochs": epochs})
    every = [(r, resource, removed) for resource in resources for removed in removals for r in rankings]
    for ranking, resource, removed in every:
        result = Healed(ranking.label, ranking.seed, removed, resource, epochs)
        if result.key in known:
            continue
        smaller = planned(setup, ranking, removed, "kept", resource)
        if smaller is None:
            append(path, result)
            continue
        cost, began = count(smaller), time.perf_counter()
        healed = heal(
            smaller,
            setup.data.train,
            LOSS,
            teacher=setup.program,
            settings=settings,
            validation=setup.data.validation,
        )
        seconds = time.perf_counter() - began
        start, end = (evaluate(p, setup.data.test, top1).metric for p in (healed.starts[healed.start], healed.program))
        shares = {"macs": cost.macs / dense.macs, "params": cost.params / dense.params}
        append(path, replace(result, **shares, start=start, end=end, seconds=seconds))
        say(f"{ranking.label}, {removed:.0%} of {resource} removed: {start:.2%} to {end:.2%} in {seconds:.0f} s")


def stored(path: Path) -> list[Healed]:
    """The results in a file; none if there is no file."""
    return [Healed(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
