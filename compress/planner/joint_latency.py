"""Latency with implants and without blocks: layers from the same table, in the branches that they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...export.layer_model import LayerShape
from ...passes.program import Program
from ..cost.axes import Axis, scaled, varies
from ..cost.latency import LatencyModel
from ..cost.latency_table import LatencyTable
from ..cost.sites import Site
from ..cost.terms import Column, Term
from ..implants.offers import Offers, OfferSite, offer_sites
from ..implants.shapes import Layer, split_layers
from .drops import BlockOffer
from .levels import sizes_of
from .problem import Choice
from .quantities import Quantities

_BASE = 1 << 20
"""More than any rank, and more than the filters of any layer."""


@dataclass(frozen=True)
class JointLatency:
    """How implants and blocks change the latency of a network.

    Attributes:
        quantities: The layout of slopes.
        form: Form of the implants.
        offered: Layers that may have one, by module path.
        places: Place of each group, by name.
        block_of: Block that a node goes with, by name of the node.
    """

    quantities: Quantities
    form: str
    offered: Mapping[str, OfferSite]
    places: Mapping[str, int]
    block_of: Mapping[str, int]

    @staticmethod
    def of(
        program: Program, implants: Offers | None, blocks: Sequence[BlockOffer], quantities: Quantities
    ) -> JointLatency:
        """What a program's implants and blocks change.

        Args:
            program: The program.
            implants: Implants to choose from.
            blocks: Blocks that may be dropped.
            quantities: The layout of slopes.
        """
        sites = offer_sites(program, implants) if implants is not None else ()
        return JointLatency(
            quantities,
            implants.form if implants is not None else "",
            {site.path: site for site in sites},
            {group.name: i for i, group in enumerate(program.groups)},
            {node: i for i, offer in enumerate(blocks) for node in offer.block.nodes},
        )

    def column(self, model: LatencyModel) -> Column:
        """Microseconds, as the planner reads them."""
        terms = []
        for site in model.sites:
            split = self._split_term(model, site)
            term = self.quantities.widened_term(model.site_term(site)) if split is None else split
            terms.append(self._while_it_stays(term, site.node))
        for rest in model.rest:
            terms.append(self._while_it_stays(self.quantities.widened_term(model.rest_term(rest)), rest.node))
        return Column(model.name, tuple(terms), model.between)

    def wanted(
        self, sites: Sequence[Site], choices: Sequence[Choice], batches: Sequence[int]
    ) -> Mapping[LayerShape, Sequence[np.ndarray]]:
        """The pairs of widths that these choices may ask a table for beside those of the layers as they are.

        Args:
            sites: The layers.
            choices: Choices with implants.
            batches: Batch sizes.
        """
        found: dict[LayerShape, list[np.ndarray]] = {}
        for site in sites:
            if site.path not in self.offered:
                continue
            sides = (sizes_of(axis, choices) for axis in (self.quantities.widen(site.inputs), self._outputs(site)))
            inputs, packed = (side.reshape(-1) for side in np.meshgrid(*sides, indexing="ij"))
            for batch in batches:
                for family, pairs, there in _layers(replace(site.family, batch=batch), self.form, inputs, packed):
                    found.setdefault(family, []).append(np.unique(pairs[there], axis=0))
        return {family: pairs for family, pairs in found.items() if any(len(some) for some in pairs)}

    def _split_term(self, model: LatencyModel, site: Site) -> Term | None:
        """Time of a layer that may have a stand-in; None for others."""
        if site.path not in self.offered:
            return None
        inputs, outputs = self.quantities.widen(site.inputs), self._outputs(site)
        fixed = None if varies(inputs) else inputs[0]
        value = _SplitLookup(model.table, model.family(site), self.form, fixed, model.scale)
        return Term((inputs, outputs) if fixed is None else (outputs,), value)

    def _outputs(self, site: Site) -> Axis:
        """Outputs, replaced filters and rank as the digits of one number: all of them follow from one choice."""
        offered = self.offered[site.path]
        fixed, slopes = scaled(self.quantities.widen(site.outputs), _BASE**2)
        further = list(slopes)
        for name, rows in offered.rows.items():
            further[self.quantities.implanted(self.places[name])] += _BASE * rows.shape[1]
            further[self.quantities.rank(self.places[name])] += 1
        return fixed, tuple(further)

    def _while_it_stays(self, term: Term, node: str) -> Term:
        block = self.block_of.get(node)
        if block is None:
            return term
        return Term((*term.axes, self.quantities.axis({self.quantities.block(block): 1})), _Staying(term))


def _layers(family: LayerShape, form: str, inputs: np.ndarray, packed: np.ndarray) -> list[Layer]:
    outputs, rest = np.divmod(packed, _BASE**2)
    return split_layers(family, form, inputs, outputs, *np.divmod(rest, _BASE))


@dataclass(frozen=True)
class _SplitLookup:
    """Time of what a layer becomes, by its inputs, unless they are fixed, and outputs as `JointLatency` packs them."""

    table: LatencyTable
    family: LayerShape
    form: str
    inputs: int | None
    scale: float

    def __call__(self, at: np.ndarray) -> np.ndarray:
        inputs = at[:, 0] if self.inputs is None else np.full(len(at), self.inputs)
        micros = np.zeros(len(at))
        for family, pairs, there in _layers(self.family, self.form, inputs, at[:, -1]):
            if there.any():
                micros[there] += self.table.at(family, pairs[there])
        return self.scale * micros


@dataclass(frozen=True)
class _Staying:
    """A term while its block stays, which is the last axis; nothing if it is gone."""

    term: Term

    def __call__(self, at: np.ndarray) -> np.ndarray:
        return np.where(at[:, -1] > 0, self.term.value(at[:, :-1]), 0.0)
