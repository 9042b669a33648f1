"""How two plans differ: totals, and the groups and blocks that they decide otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..compress.plan import GroupPlan, Plan
from .diff_values import Change, Line, Quantity, Unit, changes, paired


@dataclass(frozen=True)
class GroupDifference:
    """A group that two plans decide otherwise; None where a plan has no such group."""

    name: str
    a: GroupPlan | None
    b: GroupPlan | None

    @property
    def kept_in_both(self) -> int | None:
        """Units that both keep; None if the unit numbers of the two are not of the same group."""
        return self._shared(lambda line: line.kept)

    @property
    def implanted_in_both(self) -> int | None:
        """Units that a stand-in computes in both; None as before."""
        return self._shared(lambda line: line.implanted)

    def _shared(self, units: Any) -> int | None:
        if self.a is None or self.b is None or self.a.width != self.b.width:
            return None
        return len(set(units(self.a)) & set(units(self.b)))

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "name": self.name,
            "a": self.a and _line(self.a),
            "b": self.b and _line(self.b),
            "kept_in_both": self.kept_in_both,
            "implanted_in_both": self.implanted_in_both,
        }


@dataclass(frozen=True)
class PlanDifference:
    """How two plans differ.

    Attributes:
        same_groups: Both are of networks with the same groups.
        settings: What they were made for and how, where it differs.
        totals: Cost, prediction and measurements of both.
        groups: The groups that are decided otherwise.
        group_count: How many groups there are in either.
        blocks: Residual blocks that one drops and the other keeps: whether `a` and `b` drop it.
    """

    same_groups: bool
    settings: tuple[Change, ...]
    totals: tuple[Line, ...]
    groups: tuple[GroupDifference, ...]
    group_count: int
    blocks: tuple[Change, ...]

    @property
    def same(self) -> bool:
        """Nothing differs."""
        parts = (self.settings, self.groups, self.blocks)
        return self.same_groups and not any(parts) and not any(line.differs for line in self.totals)

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "same": self.same,
            "same_groups": self.same_groups,
            "settings": [change.document() for change in self.settings],
            "totals": [line.document() for line in self.totals],
            "groups": [group.document() for group in self.groups],
            "blocks": [change.document() for change in self.blocks],
        }


def compare_plans(a: Plan, b: Plan) -> PlanDifference:
    """Compares what two plans decide, predict and measured; not the reasons that they give."""
    names = list(dict.fromkeys([*a.groups, *b.groups]))
    pairs = [GroupDifference(name, a.groups.get(name), b.groups.get(name)) for name in names]
    dropped = [name for name in dict.fromkeys([*a.blocks, *b.blocks]) if (name in a.drops()) != (name in b.drops())]
    return PlanDifference(
        same_groups=a.program == b.program,
        settings=tuple(changes(_settings(a), _settings(b))),
        totals=paired(dict(_totals(a)), dict(_totals(b))),
        groups=tuple(pair for pair in pairs if _decision(pair.a) != _decision(pair.b)),
        group_count=len(names),
        blocks=tuple(Change(name, name in a.drops(), name in b.drops()) for name in dropped),
    )


def _decision(line: GroupPlan | None) -> Any:
    """What makes a line another decision: the order of the units and the reason do not."""
    if line is None:
        return None
    form = (line.implant.form, line.implant.rank, frozenset(line.implanted)) if line.implant else None
    return line.width, frozenset(line.removed), form


def _line(line: GroupPlan) -> dict[str, Any]:
    implant = line.implant if line.implanted else None
    return {
        "action": line.action,
        "kept": len(line.kept),
        "width": line.width,
        "delta_loss": line.delta_loss,
        "std_error": line.std_error,
        "implant": implant and {"form": implant.form, "rank": implant.rank, "units": len(line.implanted)},
    }


def _settings(plan: Plan) -> dict[str, Any]:
    ranking = {"method": plan.method, "unit": plan.unit, "seed": plan.seed}
    implants = {"implants": {"init": plan.implant_init}} if plan.implants() else {}
    return {"target": plan.target, "budget": plan.budget, "ranking": ranking, "planner": plan.settings, **implants}


def _totals(plan: Plan) -> Iterator[tuple[str, tuple[Unit, Quantity]]]:
    for name, planned, dense in (
        ("parameters", plan.planned.params, plan.dense.params),
        ("MACs", plan.planned.macs, plan.dense.macs),
    ):
        yield name, ("count", Quantity(planned, share=planned / dense if dense else None))
    yield f"predicted {plan.unit}", ("score", Quantity(plan.delta_loss, std_error=plan.std_error))
    for name, found in plan.measured.items():
        yield from _measured(name, found)


def _measured(name: str, found: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Unit, Quantity]]]:
    """One cost that is not counted: measured if it was, else predicted; people may have edited it."""
    key = "measured" if "measured" in found else "predicted"
    share, ends = found.get(key), found.get("interval")
    if not isinstance(share, int | float):
        return
    known = (
        key == "measured" and isinstance(ends, list) and [isinstance(end, int | float) for end in ends] == [True] * 2
    )
    interval = (float(ends[0]), float(ends[1])) if known and ends else None
    yield f"{name}, {key}", ("share", Quantity(float(share), interval=interval))
