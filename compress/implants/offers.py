"""Implants that a planner may choose from: which groups can have some, of which ranks, and what each would lose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, fx

from ...errors import Allowed, Refused, UserError
from ...passes.implant import check_form, implantable, joint_order, replaced_layers
from ...passes.implant_form import RANKED, Implant, default_rank
from ...passes.labels.groups import Group
from ...passes.program import Program
from ..cost.axes import Axis, AxisReader
from .cost import filters_of

_SMALLER_RANKS = (1.0, 0.5)
"""Ranks that are offered where none is asked for, as shares of the largest that costs no more than 1×1."""


@dataclass(frozen=True)
class Offer:
    """A kind of implant that the units of a group can have.

    Attributes:
        rank: Its rank whatever their number, if that was asked for.
        share: Its rank as a share of their number; None where `rank` is given or the form has no rank.
        lost: float64 [width]: by unit, the share of its score that an implant does not save; 1 until it is measured.
    """

    rank: int | None
    share: float | None
    lost: np.ndarray

    def rank_of(self, units: int) -> int | None:
        """Rank for so many units; None if the form has none."""
        if self.rank is not None:
            return min(self.rank, units)
        return None if self.share is None else max(1, round(self.share * units))


@dataclass(frozen=True)
class Offers:
    """Implants of one form that a planner may choose from.

    Attributes:
        form: The form.
        init: Where the weights come from; what `lost` was measured with.
        groups: Offers by name of the group; groups that can have none are absent.
        facts: What the losses were measured on.
    """

    form: str
    init: str
    groups: Mapping[str, tuple[Offer, ...]]
    facts: Mapping[str, Any]

    def with_losses(self, lost: Mapping[tuple[str, int], np.ndarray], facts: Mapping[str, Any]) -> Offers:
        """The offers with the losses of each, by group and its place among the group's offers."""
        groups = {
            name: tuple(replace(offer, lost=lost[name, i]) for i, offer in enumerate(offers))
            for name, offers in self.groups.items()
        }
        return replace(self, groups=groups, facts=facts)


@dataclass(frozen=True)
class OfferSite:
    """A layer of which filters can be replaced.

    Attributes:
        path: Its module path.
        node: Its one call.
        rows: int64 [width, multiplicity] by group: its filters that compute each unit.
        inputs: Size of its inputs, by the widths of the groups.
    """

    path: str
    node: fx.Node
    rows: Mapping[str, np.ndarray]
    inputs: Axis


def offers(program: Program, form: str, rank: int | None = None, init: str = "least-squares") -> Offers:
    """The implants that a program can have, all at once.

    Args:
        program: The program.
        form: Form of the implants; not `center`, which saves nothing.
        rank: Rank of a ranked form; None offers the largest that costs no more than a pointwise implant, and
            half of it.
        init: Where their weights will come from.

    Raises:
        UserError: A form or start that gives nothing to choose.
    """
    if form == "center" or init == "zeros":
        raise UserError(
            "there is nothing to choose between such implants and pruning",
            where=f"plan.{'implant: center' if form == 'center' else 'implant_init: zeros'}",
            why="center costs what the filters cost" if form == "center" else "implants of zeros keep nothing",
            hint="take implant: pointwise with implant_init: least-squares, or a number as plan.ni_ratio",
        )
    check_form(form, (rank or 1) if form in RANKED else rank, where="plan.implant")
    found: dict[str, tuple[Offer, ...]] = {}
    for group in _together(program, form):
        ones = np.ones(group.width)
        if form not in RANKED or rank is not None:
            found[group.name] = (Offer(rank, None, ones),)
            continue
        shapes = filters_of(program, {}, group.name, Implant(tuple(group.units), form))
        largest = min(default_rank(shape, form) or 1 for shape in shapes) / group.width
        found[group.name] = tuple(Offer(None, part * largest, ones) for part in _SMALLER_RANKS)
    return Offers(form, init, found, {})


def _together(program: Program, form: str) -> list[Group]:
    """The groups that can have implants, whichever of them do."""
    each = [g for g in program.groups if g.frozen is None and isinstance(implantable(program, g, form), Allowed)]
    if not each or not isinstance(joint_order(program, each), Refused):
        return each
    found: list[Group] = []
    for group in each:  # where the channels of two cannot both lie last, the earlier one can have some
        if not isinstance(joint_order(program, [*found, group]), Refused):
            found.append(group)
    return found


def offer_sites(program: Program, given: Offers) -> tuple[OfferSite, ...]:
    """The layers whose filters the offers can replace, in the order of the graph."""
    reader = AxisReader(program)
    rows: dict[str, dict[str, np.ndarray]] = {}
    for group in program.groups:
        if group.name in given.groups:
            found = replaced_layers(program, group, Implant(tuple(group.units), given.form))
            assert not isinstance(found, Refused)
            for path, index in found.items():
                rows.setdefault(path, {})[group.name] = index.reshape(group.width, -1)
    sites = []
    for node in program.graph.find_nodes(op="call_module"):
        path = str(node.target)
        if path in rows:
            weight = program.graph_module.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            sites.append(OfferSite(path, node, rows[path], reader.tensor(weight)[1]))
    return tuple(sites)
