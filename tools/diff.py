"""`secateur diff`: what differs between two runs, finished or not, or between two plans."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .console import stdout_console
from .diff_plan import PlanDifference, compare_plans
from .diff_results import ResultDifference, compare_results
from .diff_side import Side, read_side
from .diff_values import Change, changes

_CODE = ("model", "data", "metric", "seed")
"""Keys of a recipe that, with the code and the files that they name, decide what is captured."""


@dataclass(frozen=True)
class Difference:
    """How two runs, or two plans, differ; None stands for what cannot be compared, and `notes` say why.

    Attributes:
        a: One side.
        b: The other.
        recipe: Keys of the recipes that differ.
        environment: Versions and facts of the processor that differ.
        captured: Parts of the captured network that differ: the start of their sha256.
        plan: How the plans differ.
        results: How what was measured differs.
        notes: What a reader has to know.
    """

    a: Side
    b: Side
    recipe: tuple[Change, ...] | None
    environment: tuple[Change, ...] | None
    captured: tuple[Change, ...] | None
    plan: PlanDifference | None
    results: ResultDifference | None
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Nothing that can be compared differs, and two runs have come equally far."""
        parts = (self.plan, self.results)
        equally_far = self.recipe is None or list(self.a.steps) == list(self.b.steps)
        changed = any((self.recipe, self.environment, self.captured))
        return equally_far and not changed and all(part is None or part.same for part in parts)

    def document(self) -> dict[str, Any]:
        """One JSON document."""
        keys = {"recipe": self.recipe, "environment": self.environment, "captured": self.captured}
        return {
            **{
                name: {"path": side.path, "state": side.state, "steps": list(side.steps)}
                for name, side in (("a", self.a), ("b", self.b))
            },
            "same": self.same,
            **{name: None if rows is None else [row.document() for row in rows] for name, rows in keys.items()},
            "plan": self.plan and self.plan.document(),
            "results": self.results and self.results.document(),
            "notes": list(self.notes),
        }


def diff(a: Path, b: Path, *, as_json: bool) -> None:
    """Prints what differs.

    Args:
        a: A run directory or a plan.
        b: What it is compared with.
        as_json: Print one JSON document.

    Raises:
        UserError: See `compare`.
    """
    found = compare(a, b)
    if as_json:
        print(json.dumps(found.document(), indent=1, ensure_ascii=False, default=str))
    else:
        from .diff_show import show_difference

        show_difference(stdout_console(), found)


def compare(a: Path, b: Path) -> Difference:
    """Compares two runs, two plans, or a plan with that of a run.

    Raises:
        UserError: A path is neither a run nor a plan, or is damaged; or one is a plan, and the other a run without one.
    """
    left, right = read_side(a), read_side(b)
    for plan, run in ((left, right), (right, left)):
        if plan.recipe is None and run.plan is None:
            raise UserError(
                "there is no plan to compare with",
                where=run.path,
                why=f"step {run.missing} of this run has not finished, or has to run again",
                hint=f"secateur plan {run.path}",
            )
    runs = left.recipe is not None and right.recipe is not None
    plan = compare_plans(left.plan, right.plan) if left.plan and right.plan else None
    return Difference(
        a=left,
        b=right,
        recipe=tuple(changes(left.recipe, right.recipe)) if runs else None,
        environment=tuple(changes(left.environment, right.environment)) if runs else None,
        captured=_captured(left, right),
        plan=plan,
        results=compare_results(left, right) if "capture" in left.steps and "capture" in right.steps else None,
        notes=tuple(_notes(left, right, plan)),
    )


def _captured(a: Side, b: Side) -> tuple[Change, ...] | None:
    """Files of the captured network that differ: its graph, its weights, its example inputs."""
    if "capture" not in a.steps or "capture" not in b.steps:
        return None
    left, right = (
        {Path(name).stem: value[:12] for name, value in side.steps["capture"].outputs.items()} for side in (a, b)
    )
    return tuple(changes(left, right))


def _notes(a: Side, b: Side, plan: PlanDifference | None) -> Iterator[str]:
    for name, side in (("A", a), ("B", b)):
        yield from (f"{name}: {note}" for note in side.notes)
    if a.recipe is not None and b.recipe is not None:
        without = [name for name, side in (("A", a), ("B", b)) if side.plan is None]
        if without:
            yield f"no plan in {' and '.join(without)}: plans are not compared"
        if _other_files(a, b):
            yield "the recipes name the same model and data, but the code or the checkpoint in those files has changed"
    if plan is not None and not plan.same_groups:
        yield "the plans are of networks with other groups: those of the same name and width are compared by unit"
    elif plan is not None and any(change.key == "weights" for change in _captured(a, b) or ()):
        yield "the captured weights differ: units of the same number need not do the same"


def _other_files(a: Side, b: Side) -> bool:
    """Whether the code of model and data, or the checkpoint, differ although the recipes and secateur do not.

    The key of the first step holds their hashes beside the recipe's sections and the version.
    """
    if "capture" not in a.steps or "capture" not in b.steps:
        return False
    recipes: list[Mapping[str, Any]] = [side.recipe or {} for side in (a, b)]
    same = all(recipes[0].get(key) == recipes[1].get(key) for key in _CODE)
    same = same and a.environment.get("secateur") == b.environment.get("secateur")
    return same and a.steps["capture"].key != b.steps["capture"].key
