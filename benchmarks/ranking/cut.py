"""Accuracy without any training, by ranking, at equal multiply-accumulates and settings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.api import apply, plan
from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.errors import BudgetError

from .cases import Ranking
from .setup import Setup, first_samples

STREAMS = ("kept", "free")
"""The residual streams stay whole, as the recipe's `plan.ignore` says; or they are cut like any other group."""

STATISTICS = 2048
"""Augmented training images that batch norm is re-estimated on."""


@dataclass(frozen=True)
class Cut:
    """What is left of a network.

    Attributes:
        label: Of the ranking.
        seed: Of the ranking.
        removed: Share of the multiply-accumulates that the budget removes.
        streams: One of `STREAMS`.
        samples: Test images.
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
    macs: float | None = None
    params: float | None = None
    raw: float | None = None
    fresh: float | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What it was asked, without what was found."""
        return self.label, self.seed, self.removed, self.streams, self.samples


def cut_all(
    setup: Setup,
    rankings: Iterable[Ranking],
    removals: Sequence[float],
    samples: int,
    path: Path,
    say: Callable[[str], None],
) -> None:
    """Cuts the network by every ranking at every budget; appends to `path` what it does not hold yet, one JSON a line.

    Args:
        setup: The network.
        rankings: Those to compare.
        removals: Shares of the multiply-accumulates to remove.
        samples: Test images to evaluate.
        path: The file of results.
        say: Told of each result.
    """
    known = {cut.key for cut in stored(path)}
    test = [first_samples(setup.data.test, samples)]
    test = list(zip(test[0][0].split(128), test[0][1].split(128), strict=True))
    images, labels = first_samples(setup.data.train, STATISTICS)
    statistics = list(zip(images.split(128), labels.split(128), strict=True))
    size = sum(len(y) for _, y in test)
    dense, began = count(setup.program), time.perf_counter()
    for ranking in rankings:
        for streams in STREAMS if setup.recipe.plan.ignore else STREAMS[1:]:
            for removed in removals:
                cut = Cut(ranking.label, ranking.seed, removed, streams, size)
                if cut.key in known:
                    continue
                ignore = setup.recipe.plan.ignore if streams == "kept" else []
                budget = Budget(macs=f"{100 * (1 - removed):g}%")
                try:
                    found = plan(
                        setup.program,
                        ranking.table,
                        target=setup.recipe.target,
                        budget=budget,
                        floor=setup.recipe.plan.floor,
                        ignore=ignore,
                    )
                except BudgetError:
                    _append(path, cut)
                    continue
                smaller = apply(setup.program, found)
                fresh = reestimate_batch_norm(smaller, statistics, samples=STATISTICS)
                cost = count(smaller)
                raw, after = (evaluate(p, test, top1).metric for p in (smaller, fresh))
                share = cost.macs / dense.macs, cost.params / dense.params
                _append(path, Cut(*cut.key, *share, raw, after))
                say(
                    f"{ranking.label}, seed {ranking.seed}, {removed:.0%} removed, streams {streams}: "
                    f"raw {raw:.2%}, batch norm {after:.2%} ({time.perf_counter() - began:.0f} s)"
                )


def stored(path: Path) -> list[Cut]:
    """The results in a file; none if there is no file."""
    return [Cut(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, cut: Cut) -> None:
    with path.open("a") as file:
        file.write(json.dumps(vars(cut)) + "\n")
