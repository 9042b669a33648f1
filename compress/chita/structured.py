"""structured-chita: which units to remove, jointly, in stages between which what remains is refitted in closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import BudgetError, UserError, did_you_mean
from ...export.targets import Target
from ...passes.labels.groups import Group
from ...passes.program import Program
from ...passes.prune import apply
from ..budget import Budget
from ..cost.stopwatch import Stopwatch
from ..data import Loader, LossFn
from ..heal.gate_fit import squared_outputs
from ..heal.ridge import reconstruct
from ..plan import Plan
from ..planner.plan import MARGIN
from ..sensitivity.request import Request
from .structured_model import Part, Selection
from .structured_room import METHOD, room_of
from .structured_search import SEARCHES
from .structured_stats import Statistics, collect, gate_part, layer_parts, relative_parts

MODELS: Mapping[str, Callable[[Statistics, float], list[Part]]] = {
    "layers": layer_parts,
    "relative": relative_parts,
    "gates": lambda statistics, ridge: [gate_part(statistics, ridge)],
}
"""Quadratic models by name: what remains makes up for what goes through whole weights, or through one gate a unit."""


@dataclass(frozen=True)
class Structured:
    """What structured-chita found.

    Attributes:
        plan: An ordinary plan, of the program that was given.
        program: That plan applied, with the weights refitted.
        facts: How it was found.
    """

    plan: Plan
    program: Program
    facts: Mapping[str, object]


def structured_chita(
    program: Program,
    loader: Loader,
    loss: LossFn,
    *,
    target: Target,
    budget: Budget,
    floor: float = 0.1,
    ignore: Sequence[str] = (),
    search: str = "swap",
    model: str = "layers",
    curvature: str = "outputs",
    stages: int = 4,
    samples: int = 512,
    ridge: float = 1e-3,
    stopwatch: Stopwatch | None = None,
    latency_margin: float = MARGIN,
    seed: int = 0,
    progress: Callable[..., Any] | None = None,
) -> Structured:
    """Plans removals jointly: a quadratic model of the loss in which what remains makes up for what goes.

    Each stage removes a part: it measures the Gauss-Newton matrix of the gates and the moments of what every layer
    reads (`structured_stats`), searches the units whose removal leaves least after compensation within the budget of
    the stage (`structured_search`), rewrites the dense network without all units removed so far, and refits every
    remaining layer to it (`heal.ridge`). The next stage starts from there. Budgets of the stages fall in equal steps.

    The plan depends on nothing but the arguments. `heal` by method `ridge` gives the refitted weights again.

    Args:
        program: The network; left as it was.
        loader: Batches in the same order each time.
        loss: Mean loss of a batch.
        target: Kept widths are multiples of its INT8 alignment.
        budget: Limits on parameters, multiply-accumulates, latency, size and activation memory, any of them together.
        floor: Share of every group that stays.
        ignore: Patterns of names of groups that stay whole.
        search: `swap` or `iht`.
        model: `layers` lets whole layers make up for what goes, each layer's error weighed by what it does to the
            outputs; `relative` weighs errors alike, as shares of each layer's power; `gates` has one factor a unit.
        curvature: `outputs` measures by the squared change of the network's outputs, `loss` by the curvature of the
            loss. Where training has fitted its data, the latter is all but zero on most samples.
        stages: How often the model is made anew.
        samples: Samples that are read.
        ridge: Of the model and of the refits, relative to the mean of the diagonal.
        stopwatch: Measures latency on the target; needed for a budget on it.
        latency_margin: Share of a latency budget that is kept free.
        seed: Of what is drawn.
        progress: Told `progress(done, total)` after every stage.

    Raises:
        UserError: An argument cannot be used.
        BudgetError: The budget cannot be met.
    """
    for name, value, known in (
        ("search", search, SEARCHES),
        ("model", model, MODELS),
        ("curvature", curvature, ("outputs", "loss")),
    ):
        if value not in known:
            raise UserError(
                f"unknown {name} {value!r}{did_you_mean(str(value), known)}",
                where=f"plan.{name}",
                hint=f"there is: {', '.join(known)}",
            )
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise UserError(f"stages must be a whole number, at least 1, not {stages!r}", where="plan.stages")
    room = room_of(
        program, target, budget, floor=floor, ignore=ignore, stopwatch=stopwatch, latency_margin=latency_margin
    )
    kept = {group.name: np.arange(group.width) for group in room.groups}
    removed: dict[str, list[int]] = {group.name: [] for group in room.groups}
    rises, current = dict.fromkeys(removed, 0.0), program
    total = 0.0
    for stage in range(1, stages + 1):
        widths = room.at(kept, stage / stages)
        if not widths.fits(np.array([len(kept[group.name]) for group in room.groups])):
            measure = loss if curvature == "loss" else squared_outputs
            names = tuple(group.name for group in room.groups)
            statistics = collect(_OnGroups(current, loader, measure, seed=seed, samples=samples, names=names))
            parts = MODELS[model](statistics, ridge)
            selection = SEARCHES[search](parts, widths)
            total += selection.rise
            for group, gone, rise in _by_group(room.groups, kept, selection, parts):
                rises[group] += rise
                removed[group] += kept[group][gone].tolist()
                kept[group] = kept[group][~gone]
            keep = {name: units for name, units in kept.items() if removed[name]}
            current = reconstruct(
                program, apply(program, keep), keep, loader, samples=2 * samples, ridge=ridge, seed=seed
            )
        if progress:
            progress(stage, stages)
    if not room.at(kept, 1.0).fits(np.array([len(kept[group.name]) for group in room.groups])):
        raise BudgetError(
            "the budget was not met",
            where=f"budget {', '.join(f'{name}: {amount}' for name, amount in budget.given().items())}",
            why="the search came to an end above it, though a plan within it may exist",
            hint="take plan.by=milp, or a larger budget",
        )
    settings = {
        "search": search,
        "model": model,
        "curvature": curvature,
        "stages": stages,
        "samples": samples,
        "ridge": ridge,
        "seed": seed,
    }
    found = room.plan(removed, rises, total, settings)
    return Structured(found, current, {"method": METHOD, **settings})


@dataclass(frozen=True)
class _OnGroups(Request):
    """A request whose units are those of some groups only.

    Attributes:
        names: Of the groups.
    """

    names: tuple[str, ...] = ()

    @property
    def groups(self) -> Sequence[Group]:
        """The groups of these names, in their order."""
        by_name = {group.name: group for group in self.program.groups}
        return [by_name[name] for name in self.names]


def _by_group(
    groups: Sequence[Group], kept: Mapping[str, np.ndarray], selection: Selection, parts: Sequence[Part]
) -> list[tuple[str, np.ndarray, float]]:
    """Of every group: its name, which of its units go, bool [units], and the rise if only those went."""
    start, found = 0, []
    for group in groups:
        stop = start + len(kept[group.name])
        gone = np.zeros(len(selection.removed), dtype=bool)
        gone[start:stop] = selection.removed[start:stop]
        alone = Selection(parts, len(gone)) if gone.any() else selection
        for unit in np.flatnonzero(gone):
            alone.toggle(int(unit))
        found.append((group.name, gone[start:stop], alone.rise if gone.any() else 0.0))
        start = stop
    return found
