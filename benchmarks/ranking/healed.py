"""Accuracy after the same healing for every ranking, at equal budgets: a few epochs, or closed form."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateur.compress.cost.model import count
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.compress.heal.heal import HealResult, heal
from secateur.compress.heal.start import BATCH_NORM
from secateur.compress.planner.plan import Plan
from secateur.passes.program import Program

from .cases import Ranking
from .cut import append, planned
from .setup import LOSS, Setup


@dataclass(frozen=True)
class Healed:
    """A network that was cut and healed.

    Attributes:
        label: Of the ranking.
        seed: Of the ranking; the seed of the training is that of the recipe.
        removed: Share of the resource that the budget removes.
        resource: "macs" or "params".
        epochs: Of training; 0 for none.
        macs: Share that is left; None if the budget cannot be met.
        params: Share that is left.
        start: Accuracy on the test set with batch norm re-estimated alone.
        end: Accuracy on the test set after healing.
        seconds: Of healing.
        method: `train`, or `ridge`: refitted in closed form.
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
    method: str = "train"

    @property
    def key(self) -> tuple[Any, ...]:
        """What it was asked, without what was found."""
        return self.label, self.seed, self.removed, self.resource, self.epochs, self.method


def heal_all(
    setup: Setup,
    rankings: Iterable[Ranking],
    removals: Sequence[float],
    resources: Sequence[str],
    epochs: float,
    path: Path,
    say: Callable[[str], None],
) -> None:
    """Cuts and heals by every ranking at every budget, residual streams as the recipe has them; see `cut_all`.

    With `epochs` of training, or in closed form if that is 0.
    """
    known = {healed.key for healed in stored(path)}
    dense = count(setup.program)
    every = [(r, resource, removed) for resource in resources for removed in removals for r in rankings]
    for ranking, resource, removed in every:
        result = Healed(ranking.label, ranking.seed, removed, resource, epochs, method="train" if epochs else "ridge")
        if result.key in known:
            continue
        found = planned(setup, ranking, removed, "kept", resource)
        if found is None:
            append(path, result)
            continue
        made, smaller = found
        cost, began = count(smaller), time.perf_counter()
        healed = heal_as_asked(setup, smaller, made, epochs)
        seconds = time.perf_counter() - began
        before = healed.starts.get(BATCH_NORM, smaller)
        start, end = (evaluate(p, setup.data.test, top1).metric for p in (before, healed.program))
        shares = {"macs": cost.macs / dense.macs, "params": cost.params / dense.params}
        append(path, replace(result, **shares, start=start, end=end, seconds=seconds))
        say(f"{ranking.label}, {removed:.0%} of {resource} removed: {start:.2%} to {end:.2%} in {seconds:.0f} s")


def heal_as_asked(setup: Setup, smaller: Program, made: Plan, epochs: float) -> HealResult:
    """Heals by the recipe in so many epochs, with the dense network as the teacher; in closed form if that is 0."""
    update = {"method": "train", "epochs": epochs} if epochs else {"method": "ridge"}
    return heal(
        smaller,
        setup.data.train,
        LOSS,
        teacher=setup.program,
        keep=made.keep(),
        implants=made.implants(),
        settings=setup.recipe.heal.model_copy(update=update),
        validation=setup.data.validation,
    )


def stored(path: Path) -> list[Healed]:
    """The results in a file; none if there is no file."""
    return [Healed(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
