"""Cuts a network by a plan and says what is left of it without any training."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from ranking.setup import Setup

from secateur.compress.cost.model import count
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.compress.heal.ridge import reconstruct
from secateur.compress.plan import Plan
from secateur.passes.program import Program
from secateur.passes.prune import apply

STATISTICS = 1024
"""Training images for batch-norm statistics and for the refits."""

Images = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Result:
    """One cut.

    Attributes:
        method: How units were chosen.
        removed: Share of the multiply-accumulates that was to go.
        images: Test images.
        macs: Share of them that is left.
        params: Share of the parameters that is left.
        plan_seconds: Processor seconds of ranking and planning.
        batch_norm: Top-1 after batch norm was re-estimated.
        plain: Top-1 after every layer was refitted by itself.
        ridge: Top-1 after the refits that mind sums and ReLUs; batch norm re-estimated if that is better on validation.
        ridge_seconds: Processor seconds of these refits.
        widths: Units left by group.
    """

    method: str
    removed: float
    images: int
    macs: float
    params: float
    plan_seconds: float
    batch_norm: float
    plain: float | None
    ridge: float
    ridge_seconds: float
    widths: dict[str, int]


def measure(
    setup: Setup, method: str, removed: float, plan: Plan, seconds: float, test: Images, check: Images, *, plain: bool
) -> Result:
    """Applies a plan, repairs the network in closed form, and evaluates it.

    Args:
        setup: Network and data.
        method: Name of the method.
        removed: What was asked for.
        plan: Its plan.
        seconds: What the plan took.
        test: Test images.
        check: Validation images, which choose between the refit with and without new batch-norm statistics.
        plain: Whether to measure the refit of each layer by itself as well.
    """
    dense, train = setup.program, setup.data.train
    smaller = apply(dense, plan.keep())
    fresh = reestimate_batch_norm(smaller, train, samples=STATISTICS)
    alone = reconstruct(dense, smaller, plan.keep(), train, samples=STATISTICS, tails=False) if plain else None
    began = time.process_time()
    refitted = reconstruct(dense, smaller, plan.keep(), train, samples=STATISTICS)
    spent = time.process_time() - began
    candidates = (refitted, reestimate_batch_norm(refitted, train, samples=STATISTICS))
    best = max(candidates, key=lambda program: _top1(program, check))
    now, whole = count(smaller), count(dense)
    return Result(
        method=method,
        removed=removed,
        images=sum(len(labels) for _, labels in test),
        macs=now.macs / whole.macs,
        params=now.params / whole.params,
        plan_seconds=round(seconds, 1),
        batch_norm=_top1(fresh, test),
        plain=_top1(alone, test) if alone is not None else None,
        ridge=_top1(best, test),
        ridge_seconds=round(spent, 1),
        widths={name: len(units) for name, units in plan.keep().items()},
    )


def stored(path: Path) -> list[Result]:
    """The results in a file; none if there is no file."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, result: Result) -> None:
    """Adds a result to the file."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def _top1(program: Program, images: Images) -> float:
    return evaluate(program, images, top1).metric
