"""Accuracy without any training, by ranking, at equal multiply-accumulates or parameters and equal settings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.api import apply, fit_implants, plan
from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.compress.implants.select import plan_within
from secateur.compress.planner.plan import Plan
from secateur.errors import BudgetError
from secateur.passes.program import Program

from .cases import Ranking
from .setup import Setup, first_samples

STREAMS = ("kept", "free")
"""The residual streams stay whole, as the recipe's `plan.ignore` says; or they are cut like any other group."""

RESOURCES = {"macs": "MACs", "params": "parameters"}
"""What a budget can be on, and its word."""

STATISTICS = 2048
"""Augmented training images that batch norm is re-estimated on."""


@dataclass(frozen=True)
class Cut:
    """What is left of a network.

    Attributes:
        label: Of the ranking.
        seed: Of the ranking.
        removed: Share of the resource that the budget removes.
        streams: One of `STREAMS`.
        samples: Test images.
        resource: One of `RESOURCES`.
        macs: Share that is left; None if the budget cannot be met.
        params: Share that is left.
        raw: Accuracy as cut.
        fresh: Accuracy after batch norm was re-estimated.
    """

    label: str
    seed: int
    removed: float
    streams: str
    samples: int
    resource: str = "macs"
    macs: float | None = None
    params: float | None = None
    raw: float | None = None
    fresh: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What it was asked, without what was found."""
        return self.label, self.seed, self.removed, self.streams, self.samples, self.resource


def cut_all(
    setup: Setup,
    rankings: Iterable[Ranking],
    removals: Sequence[float],
    samples: int,
    path: Path,
    say: Callable[[str], None],
    *,
    resources: Sequence[str] = ("macs",),
    streams: Sequence[str] = STREAMS,
) -> None:
    """Cuts the network by every ranking at every budget; appends to `path` what it does not hold yet, one JSON a line.

    Args:
        setup: The network.
        rankings: Those to compare.
        removals: Shares of the resource to remove.
        samples: Test images to evaluate.
        path: The file of results.
        say: Told of each result.
        resources: Those of `RESOURCES` to put budgets on.
        streams: Those of `STREAMS` to try; a recipe that ignores nothing knows "free" alone.
    """
    known = {cut.key for cut in stored(path)}
    test, statistics = _batches(setup.data.test, samples), statistics_batches(setup)
    size = sum(len(y) for _, y in test)
    dense, began = count(setup.program), time.perf_counter()
    streams = streams if setup.recipe.plan.ignore else STREAMS[1:]
    for ranking, stream, resource, removed in product(rankings, streams, resources, removals):
        cut = Cut(ranking.label, ranking.seed, removed, stream, size, resource)
        if cut.key in known:
            continue
        found = planned(setup, ranking, removed, stream, resource)
        if found is None:
            append(path, cut)
            continue
        smaller = found[1]
        fresh = reestimate_batch_norm(smaller, statistics, samples=STATISTICS)
        cost = count(smaller)
        raw, after = (evaluate(p, test, top1).metric for p in (smaller, fresh))
        append(path, replace(cut, macs=cost.macs / dense.macs, params=cost.params / dense.params, raw=raw, fresh=after))
        say(
            f"{ranking.label}, seed {ranking.seed}, {removed:.0%} of {resource} removed, streams {stream}: "
            f"raw {raw:.2%}, batch norm {after:.2%} ({time.perf_counter() - began:.0f} s)"
        )


def planned(setup: Setup, ranking: Ranking, removed: float, streams: str, resource: str) -> tuple[Plan, Program] | None:
    """The plan by a ranking and the network cut by it; None if the budget cannot be met."""
    recipe = setup.recipe
    budget = Budget(**{resource: f"{100 * (1 - removed):g}%"})

    def within(budget: Budget) -> Plan:
        return plan(
            setup.program,
            ranking.table,
            target=recipe.target,
            budget=budget,
            floor=recipe.plan.floor,
            ignore=recipe.plan.ignore if streams == "kept" else [],
        )

    try:
        if not ranking.implants:
            found = within(budget)
            return found, apply(setup.program, found)
        found = plan_within(within, setup.program, ranking.table, budget, ni_ratio=ranking.implants)
        return found, fit_implants(setup.program, found, setup.data.calibration)
    except BudgetError:
        return None


def statistics_batches(setup: Setup) -> list[tuple[Tensor, Tensor]]:
    """The training images that batch norm is re-estimated on."""
    return _batches(setup.data.train, STATISTICS)


def _batches(loader: Iterable[tuple[Tensor, Tensor]], samples: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = first_samples(loader, samples)
    return list(zip(images.split(128), labels.split(128), strict=True))


def stored(path: Path) -> list[Cut]:
    """The results in a file; none if there is no file."""
    return [Cut(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, cut: Any) -> None:
    """Adds a result to a file, one JSON a line."""
    with path.open("a") as file:
        file.write(json.dumps(vars(cut)) + "\n")
