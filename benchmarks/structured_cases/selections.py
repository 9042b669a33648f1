"""Ways to choose the units that go: one-shot rankings, layer-wise reconstruction, and structured-chita."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from ranking.setup import LOSS, Setup

from secateur.compress.budget import Budget
from secateur.compress.chita.structured import structured_chita
from secateur.compress.chita.structured_model import Selection
from secateur.compress.chita.structured_stats import collect, relative_parts
from secateur.compress.plan import Plan
from secateur.compress.planner.plan import plan
from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.request import Request
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.export.targets import find_target

LAYERWISE = "OBSPA-like"


@dataclass(frozen=True)
class Task:
    """What is asked of every method.

    Attributes:
        setup: Network and data.
        samples: Calibration images.
        probes: Of HAP.
        stages: Of structured-chita.
    """

    setup: Setup
    samples: int
    probes: int
    stages: int

    def plan(self, table: Sensitivity, removed: float) -> Plan:
        """A plan from scores: the planner's own, by gain."""
        return plan(self.setup.program, table, budget=budget(removed), by="gain", **self.settings)

    @property
    def settings(self) -> dict[str, object]:
        """Target, floor and patterns of the recipe."""
        spec = self.setup.recipe
        return {"target": find_target(spec.target), "floor": spec.plan.floor, "ignore": tuple(spec.plan.ignore)}


def budget(removed: float) -> Budget:
    """The budget that removes a share of the multiply-accumulates."""
    return Budget(macs=f"{100 * (1 - removed):g}%")


def layerwise_scores(task: Task) -> Sensitivity:
    """Optimal-brain-surgeon scores of groups, layer by layer, each against the power of the layer's own output.

    After SPA's OBSPA (arXiv:2403.18955) as far as its abstract tells: group-wise scores of the second-order loss of
    reconstructing each layer, then an update of what remains, without training. Written anew; not its code.
    """
    request = Request(task.setup.program, task.setup.data.calibration, LOSS, 0, task.samples)
    scores = Selection(relative_parts(collect(request), 1e-3), sum(g.width for g in request.groups)).forms()
    starts = np.cumsum([0, *(group.width for group in request.groups)])
    groups = {
        group.name: Scores(scores[start : start + group.width], np.zeros(group.width))
        for group, start in zip(request.groups, starts, strict=False)
    }
    return Sensitivity(LAYERWISE, "score", groups)


def scores_of(task: Task, method: str) -> Sensitivity:
    """Scores of a one-shot method."""
    if method == LAYERWISE:
        return layerwise_scores(task)
    own = (
        {"samples": task.samples, "probes": task.probes} if method != "hap" else {"samples": 256, "probes": task.probes}
    )
    return rank(task.setup.program, task.setup.data.calibration, LOSS, method=method, **own)


def _structured(**options: object) -> Callable[[Task, float], Plan]:
    def run(task: Task, removed: float) -> Plan:
        given = {"stages": task.stages, **options}
        found = structured_chita(
            task.setup.program,
            task.setup.data.calibration,
            LOSS,
            budget=budget(removed),
            samples=task.samples,
            **task.settings,  # type: ignore[arg-type]
            **given,  # type: ignore[arg-type]
        )
        return found.plan

    return run


JOINT: Mapping[str, Callable[[Task, float], Plan]] = {
    "structured-chita": _structured(),
    "structured-chita, iht": _structured(search="iht"),
    "structured-chita, one stage": _structured(stages=1),
    "structured-chita, shares of each layer": _structured(model="relative"),
    "structured-chita, curvature of the loss": _structured(curvature="loss"),
    "structured-chita, gates": _structured(model="gates"),
}
"""structured-chita, its default first."""
