"""Planning in stages: a part of the cut, a new ranking of what is left, a further part.

Scores are estimates at the network as it is. The further a cut goes, the less they say about its last units, because
others that did their work are gone. Here the network is cut in parts of rising size, as the limits fall evenly from its
own cost to the budget, and what is left is ranked again after each part (iterative pruning: Molchanov et al. 2017,
arXiv:1611.06440; one ranking a stage). A unit that is gone stays gone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...passes.program import Program
from ...passes.prune import apply
from ..plan import GroupPlan, Plan
from ..sensitivity.table import Scores, Sensitivity

GONE = -1.0
"""Score of a unit that is gone already: below zero it counts as nothing, and it comes first."""


@dataclass(frozen=True)
class Staged:
    """A plan that was made in stages.

    Attributes:
        plan: The plan; the predicted rise of each unit is that of the stage in which it went.
        stages: For each stage the predicted rise of its part of the cut and the seconds that its ranking took.
    """

    plan: Plan
    stages: tuple[Mapping[str, Any], ...]


@dataclass
class _Gone:
    """What went in earlier stages: scores of units by group, as they were when they went."""

    delta_loss: dict[str, dict[int, float]] = field(default_factory=dict)
    variance: dict[str, dict[int, float]] = field(default_factory=dict)


def plan_in_stages(
    program: Program,
    first: Sensitivity,
    make: Callable[[Sensitivity, float], Plan],
    rank_again: Callable[[Program], Sensitivity],
    *,
    stages: int,
    note: Callable[[str], None] = lambda text: None,
) -> Staged:
    """Plans in stages.

    Args:
        program: The program.
        first: Its ranking.
        make: Plans with a ranking for a part of the cut, from above 0 to 1, the whole.
        rank_again: Ranks a smaller program.
        stages: Number of stages, at least 1.
        note: Told what each stage cost.
    """
    table, gone, told = first, _Gone(), []
    for stage in range(1, stages + 1):
        made = make(table, stage / stages)
        _remember(gone, made, table)
        made = _with_losses(made, gone)
        told.append({"delta_loss": made.delta_loss, "seconds": 0.0})
        if stage == stages:
            break
        began = time.monotonic()
        again = rank_again(apply(program, made.keep(), allow_unchanged=True))
        told[-1]["seconds"] = round(time.monotonic() - began, 1)
        note(f"stage {stage} of {stages}: predicted rise {made.delta_loss:g}; ranked again in {told[-1]['seconds']} s")
        table = _merged(table, made, again)
    return Staged(replace(made, settings={**made.settings, "stages": stages}), tuple(told))


def _merged(before: Sensitivity, made: Plan, again: Sensitivity) -> Sensitivity:
    """A ranking of the whole program: new scores for what is left, `GONE` for what is not."""
    groups, places, start = {}, {}, 0
    for name, scores in before.groups.items():
        kept = np.array(made.groups[name].kept, dtype=np.int64)
        delta_loss, std_error = np.full(len(scores.delta_loss), GONE), np.zeros(len(scores.delta_loss))
        new = again.groups.get(name)
        fits = new is not None and len(new.delta_loss) == len(kept)
        found = new if new is not None and fits else Scores(scores.delta_loss[kept], scores.std_error[kept])
        delta_loss[kept], std_error[kept] = found.delta_loss, found.std_error
        groups[name] = Scores(delta_loss, std_error)
        places[name] = start + kept
        start += len(delta_loss)
    interactions = None
    if again.interactions is not None and list(again.groups) == list(groups):
        left = np.concatenate(list(places.values()))
        interactions = np.diag(np.concatenate([scores.delta_loss for scores in groups.values()]))
        interactions[np.ix_(left, left)] = again.interactions
    return Sensitivity(again.method, again.unit, groups, before.facts, interactions)


def _remember(gone: _Gone, made: Plan, table: Sensitivity) -> None:
    """Keeps the scores of the units that went in this stage."""
    for name, line in made.groups.items():
        for unit in line.removed:
            losses = gone.delta_loss.setdefault(name, {})
            if unit not in losses:
                losses[unit] = float(table.groups[name].delta_loss[unit])
                gone.variance.setdefault(name, {})[unit] = float(table.groups[name].std_error[unit]) ** 2


def _with_losses(made: Plan, gone: _Gone) -> Plan:
    """The plan with the losses of all stages added up; interactions between stages are in the later ranking."""
    groups: dict[str, GroupPlan] = {}
    for name, line in made.groups.items():
        losses, variances = gone.delta_loss.get(name, {}), gone.variance.get(name, {})
        loss = sum(losses[unit] for unit in line.removed)
        error = sum(variances[unit] for unit in line.removed) ** 0.5
        groups[name] = replace(line, delta_loss=_rounded(loss), std_error=_rounded(error)) if line.removed else line
    total = sum(line.delta_loss for line in groups.values())
    error = sum(line.std_error**2 for line in groups.values()) ** 0.5
    return replace(made, groups=groups, delta_loss=_rounded(total), std_error=_rounded(error))


def _rounded(value: float) -> float:
    return float(f"{value:.2e}")
