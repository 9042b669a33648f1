"""Choices with implants: for every width, how many of the kept units are implanted, and at which rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ...passes.program import Program
from ..implants.columns import always_smaller
from ..implants.offers import Offer, Offers, OfferSite, offer_sites
from .levels import reachable
from .problem import Choice, grid_step
from .quantities import Quantities

MOST_COUNTS = 8
"""Numbers of implanted units that are tried in a group: every step of the width grid, or every second, third, …"""


def implanted_choices(
    program: Program, choices: Sequence[Choice], given: Offers, quantities: Quantities, *, align: int
) -> tuple[Choice, ...]:
    """The choices with implants among their levels.

    At every width, the units that would go next are implanted, a multiple of the width grid of them, up to all. What is
    no better than pruning the same units is left out.

    Args:
        program: The program.
        choices: Widths of its groups.
        given: The implants to choose from, with what each unit would lose.
        quantities: The layout of slopes.
        align: The width grid.
    """
    sites = offer_sites(program, given)
    least = {site.path: int(reachable(site.inputs, [choice.widths for choice in choices])[0]) for site in sites}
    rooms = {
        name: [_Room.of(program, site, name, given, least[site.path]) for site in sites if name in site.rows]
        for name in given.groups
    }
    made = []
    for choice in choices:
        name = choice.group.name
        offers = given.groups.get(name, ())
        # A group that cannot be pruned (or is ignored) is left as it is.
        wanted = bool(offers) and choice.scores is not None
        made.append(_with_levels(choice, offers, given.form, rooms[name], quantities, align) if wanted else choice)
    return tuple(made)


@dataclass(frozen=True)
class _Room:
    """What else a layer may hold beside the units of one group.

    Attributes:
        kernel: Kernel of the layer.
        multiplicity: Filters of each unit.
        others: Filters, and ranks, that the other groups of the layer can have at most.
        inputs: Inputs of the layer at least.
    """

    kernel: tuple[int, ...]
    multiplicity: int
    others: tuple[int, int]
    inputs: int

    @staticmethod
    def of(program: Program, site: OfferSite, name: str, given: Offers, inputs: int) -> _Room:
        weight = program.graph_module.get_submodule(site.path).weight
        assert isinstance(weight, Tensor)
        filters = ranks = 0
        for other, rows in site.rows.items():
            if other != name:
                filters += rows.size
                ranks += max(offer.rank_of(len(rows)) or 0 for offer in given.groups[other])
        return _Room(tuple(weight.shape[2:]), site.rows[name].shape[1], (filters, ranks), inputs)

    def takes(self, form: str, units: int, rank: int) -> bool:
        """Whether so many units can have a stand-in that is smaller than their filters, whatever others do."""
        filters = units * self.multiplicity
        most = (filters + self.others[0], rank + self.others[1])
        return always_smaller(form, self.kernel, (filters, rank), most, self.inputs)


def _with_levels(
    choice: Choice, offers: Sequence[Offer], form: str, rooms: Sequence[_Room], quantities: Quantities, align: int
) -> Choice:
    assert choice.steps is not None
    width, step = choice.group.width, grid_step(choice.group, align)
    stride = step * -(-width // (step * MOST_COUNTS))
    gone = np.concatenate([[0.0], np.cumsum(choice.steps)])
    pruned = {int(kept): float(gone[width - kept]) for kept in choice.widths}
    levels = {(int(kept), 0, 0): float(rise) for kept, rise in zip(choice.widths, choice.rise, strict=True)}
    for offer in offers:
        lost = np.concatenate([[0.0], np.cumsum(offer.lost[choice.order] * choice.steps)])
        for kept in choice.widths.tolist():
            first = width - kept  # units that are removed go first in the order
            for count in range(stride, kept + 1, stride):
                rank = offer.rank_of(count) or 0
                rise = float(gone[first] + lost[first + count] - lost[first])
                if rise < pruned.get(kept - count, np.inf) and all(room.takes(form, count, rank) for room in rooms):
                    level = (kept, count, rank)
                    levels[level] = min(rise, levels.get(level, rise))
    ordered = sorted(levels, key=lambda level: (-level[0], level[1], -level[2]))
    counts = [np.array(amount, dtype=np.int64) for amount in zip(*ordered, strict=True)]
    rises = [levels[level] for level in ordered]
    further = (quantities.implanted(choice.column), quantities.rank(choice.column))
    return replace(
        choice, widths=counts[0], rise=np.array(rises), implanted=counts[1], ranks=counts[2], further=further
    )
