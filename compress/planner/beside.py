"""What a plan may choose beside widths: implants and blocks to drop, as levels and as terms of every cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...errors import UserError
from ...passes.program import Program
from ..cost.axes import Axis
from ..cost.file_size import size_column
from ..cost.latency import LatencyModel
from ..cost.memory import memory_columns, moment
from ..cost.model import CostModel
from ..cost.terms import Column, Term, product_term
from ..implants.columns import saving_terms, size_terms
from ..implants.offers import Offers
from ..sensitivity.table import Sensitivity
from .drops import BlockOffer, check_losses
from .file_parts import block_bytes, stand_in_bytes
from .implanted import implanted_choices
from .joint_latency import JointLatency
from .limits import Costs, Limit
from .problem import Choice, Drop
from .quantities import Quantities
from .search import RULES_OF_THUMB


@dataclass(frozen=True)
class Beside:
    """Implants and blocks that a plan may choose from.

    Attributes:
        implants: Implants, with what each unit would lose; None if there are none.
        blocks: Blocks that may be dropped.
    """

    implants: Offers | None = None
    blocks: tuple[BlockOffer, ...] = ()

    def check(self, by: str, sensitivity: Sensitivity) -> None:
        """Refuses what cannot be chosen jointly.

        Args:
            by: Name of the search.
            sensitivity: The ranking.

        Raises:
            UserError: The search is a rule of thumb, or losses of what is chosen are not those of the ranking.
        """
        asked = "plan.ni_ratio: auto" if self.implants is not None else "plan.blocks: drop"
        if by in RULES_OF_THUMB:
            raise UserError(
                f"the search by {by} chooses widths alone",
                where="plan.by",
                why=f"{asked} makes implants and blocks part of the choice",
                hint="plan.by: auto searches exactly",
            )
        for temperature in {offer.temperature for offer in self.blocks}:
            check_losses(sensitivity, temperature)

    def quantities(self, program: Program) -> Quantities:
        """The layout of slopes."""
        return Quantities(len(program.groups), len(self.blocks))

    def choices(self, program: Program, choices: tuple[Choice, ...], align: int) -> tuple[Choice, ...]:
        """The choices of widths, with implants."""
        if self.implants is None:
            return choices
        return implanted_choices(program, choices, self.implants, self.quantities(program), align=align)

    def drops(self, program: Program) -> tuple[Drop, ...]:
        """One choice a block. A loss that falls without it is noise, no promise: it counts as nothing."""
        quantities = self.quantities(program)
        return tuple(
            Drop(offer.block.name, quantities.block(i), np.array([0.0, max(offer.delta_loss, 0.0)]))
            for i, offer in enumerate(self.blocks)
        )

    def latency(self, program: Program) -> JointLatency:
        """How they change the latency."""
        return JointLatency.of(program, self.implants, self.blocks, self.quantities(program))

    def extended(
        self, costs: Costs, limits: Sequence[Limit], models: Mapping[int, LatencyModel] | None = None
    ) -> tuple[Limit, ...]:
        """The limits on costs that know of implants and blocks.

        Counts are exact. Latency is predicted (see `JointLatency`). Of the file, the operations that go with a block,
        or come with an implant, are those of one that was built; of memory, the values are those without implants.
        What that leaves out is read off the network as planned (see `joint`).

        Args:
            costs: Costs of the program.
            limits: Limits on costs that know widths alone.
            models: Latency models, by batch size.
        """
        program, quantities = costs.program, self.quantities(costs.program)
        block_of = {path: i for i, offer in enumerate(self.blocks) for path in offer.block.layers}
        saved = saving_terms(program, self.implants, quantities, block_of) if self.implants is not None else {}
        sized = any(limit.budget == "size" for limit in limits)
        if self.implants is not None and sized:
            added = stand_in_bytes(costs, self.implants)
            saved["size"] = size_terms(program, self.implants, quantities, block_of, costs.network.integer, added)
        beside = block_bytes(costs, [offer.block for offer in self.blocks]) if sized else {}
        found = []
        for limit in limits:
            if limit.budget in ("memory", "latency"):
                continue
            terms = list(saved.get(limit.budget, ()))
            for i, offer in enumerate(self.blocks):
                if limit.budget == "size":
                    block = size_column(program, costs.sites, costs.network, offer.block)
                    block = replace(block, terms=(*block.terms, product_term((), beside[offer.block.name])))
                else:
                    block = CostModel.of(program, offer.block).columns()[limit.budget]
                terms += [_gone(term, quantities, i) for term in quantities.widened(block).terms]
            column = quantities.widened(limit.column)
            found.append(replace(limit, column=replace(column, terms=(*column.terms, *terms))))
        timed = {model.name: model for model in (models or {}).values()}
        latency = self.latency(program) if timed else None
        for limit in limits:
            if limit.budget == "latency" and latency is not None:
                found.append(replace(limit, column=latency.column(timed[limit.column.name])))
        memory = [limit for limit in limits if limit.budget == "memory"]
        if memory:
            found += [replace(memory[0], column=column) for column in self._memory(program, quantities)]
        return tuple(found)

    def _memory(self, program: Program, quantities: Quantities) -> list[Column]:
        """Bytes alive at each moment; moments inside a block are those of nothing if it is gone."""
        blocks = [offer.block for offer in self.blocks]
        within = {moment(name): i for i, block in enumerate(blocks) for name in block.nodes}
        found = []
        for column in memory_columns(program, apart=blocks):
            column = quantities.widened(column)
            if column.name in within:
                gone = (_gone(term, quantities, within[column.name]) for term in column.terms)
                column = replace(column, terms=(*column.terms, *gone))
            found.append(column)
        return found


def _gone(term: Term, quantities: Quantities, block: int) -> Term:
    """What is saved of a term, whose axes know all quantities, if a block is gone."""
    axis: Axis = quantities.axis({quantities.block(block): 1})
    return Term((*term.axes, axis), _Gone(term))


@dataclass(frozen=True)
class _Gone:
    term: Term

    def __call__(self, at: np.ndarray) -> np.ndarray:
        return np.where(at[:, -1] > 0, 0.0, -self.term.value(at[:, :-1]))
