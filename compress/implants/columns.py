"""What implants save, as terms of the costs: functions of implanted units, their ranks and the inputs of each layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...passes.program import Program
from ..cost.axes import Axis, varies
from ..cost.terms import Term
from ..planner.quantities import Quantities
from .cost import batch_size, saved_by
from .offers import Offers, OfferSite, offer_sites

Saves = Callable[[int, int, int], float]
"""What a stand-in saves: of so many filters with so many inputs, at this rank (0 where the form has none)."""


_BASE = 1 << 20
"""More than any rank."""


def saving_terms(
    program: Program, given: Offers, quantities: Quantities, block_of: Mapping[str, int]
) -> dict[str, tuple[Term, ...]]:
    """Parameters and multiply-accumulates that implants save, as terms to add to the costs without them.

    Args:
        program: The program.
        given: What implants there may be.
        quantities: The layout of slopes.
        block_of: Block of each layer that goes if that block is dropped, by module path.
    """
    params, macs = [], []
    for site in offer_sites(program, given):
        saves, block = _Site(program, site, given.form), block_of.get(site.path)
        params.append(site_term(program, site, quantities, Saved(saves.params), block))
        macs.append(site_term(program, site, quantities, Saved(saves.macs), block))
    return {"params": tuple(params), "macs": tuple(macs)}


def size_terms(
    program: Program,
    given: Offers,
    quantities: Quantities,
    block_of: Mapping[str, int],
    integer: Collection[str],
    stand_in: float,
) -> tuple[Term, ...]:
    """Bytes of the file that implants save: weights, less what each stand-in adds.

    Args:
        program: The program.
        given: What implants there may be.
        quantities: The layout of slopes.
        block_of: As in `saving_terms`.
        integer: Module paths of layers with weights of one byte; others have four.
        stand_in: Bytes that a stand-in adds beside its weights.
    """
    terms = []
    for site in offer_sites(program, given):
        saves, size = _Site(program, site, given.form), 1.0 if site.path in integer else 4.0

        def saved(rows: int, inputs: int, rank: int, saves: _Site = saves, size: float = size) -> float:
            return size * saves.params(rows, inputs, rank) - stand_in

        terms.append(site_term(program, site, quantities, Saved(saved), block_of.get(site.path)))
    return tuple(terms)


@dataclass(frozen=True)
class _Site:
    """What a stand-in in one layer saves."""

    program: Program
    site: OfferSite
    form: str

    def params(self, rows: int, inputs: int, rank: int) -> float:
        return self._both(rows, inputs, rank)[0]

    def macs(self, rows: int, inputs: int, rank: int) -> float:
        return self._both(rows, inputs, rank)[1] / batch_size(self.program)

    def _both(self, rows: int, inputs: int, rank: int) -> tuple[int, int]:
        layer = self.program.graph_module.get_submodule(self.site.path)
        assert isinstance(layer.weight, Tensor)
        kernel = layer.weight.shape[2:]
        return saved_by(self.site.node, layer, (rows, inputs, *kernel), self.form, rank or None)


def site_term(
    program: Program, site: OfferSite, quantities: Quantities, value: Saved, block: int | None = None
) -> Term:
    """A term of what a layer's stand-in saves: of its filters, inputs and rank, and of the block that holds it."""
    place = {group.name: i for i, group in enumerate(program.groups)}
    # Filters and rank as the digits of one number: they depend on the same choice, so one axis is enough for both.
    slopes = {quantities.implanted(place[n]): _BASE * index.shape[1] for n, index in site.rows.items()}
    slopes |= {quantities.rank(place[name]): 1 for name in site.rows}
    axes: list[Axis] = [quantities.axis(slopes), quantities.widen(site.inputs)]
    if block is not None:
        axes.append(quantities.axis({quantities.block(block): 1}))
    varying = tuple(axis for axis in axes if varies(axis))
    return Term(varying, _Filled(value, tuple(None if varies(axis) else axis[0] for axis in axes)))


@dataclass(frozen=True)
class Saved:
    """From filters and rank, inputs and, in a block, whether it stays, to what is saved."""

    saves: Saves

    def __call__(self, at: np.ndarray) -> np.ndarray:
        """float64 [choices] at sizes int64 [choices, axes]."""
        return np.array([self._one(*row) for row in at.tolist()], dtype=np.float64)

    def _one(self, stand_in: int, inputs: int, stays: int = 1) -> float:
        rows, rank = divmod(stand_in, _BASE)
        return -self.saves(rows, inputs, rank) if rows and stays else 0.0


@dataclass(frozen=True)
class _Filled:
    """A function of all axes as one of those that vary."""

    value: Saved
    fixed: tuple[int | None, ...]

    def __call__(self, at: np.ndarray) -> np.ndarray:
        columns = iter(at.T)
        filled = [np.full(len(at), size) if size is not None else next(columns) for size in self.fixed]
        return self.value(np.stack(filled, axis=1))


def always_smaller(form: str, kernel: Sequence[int], own: tuple[int, int], layer: tuple[int, int], inputs: int) -> bool:
    """Whether a stand-in saves weights whatever else is implanted in its layer, and however many inputs are left.

    A layer's stand-in has the filters and the ranks of all groups that it computes, so its weights are no sum over the
    groups; what a group adds to them is at most what it would with all others' filters and ranks at their largest.

    Args:
        form: The form.
        kernel: Kernel of the layer.
        own: Filters and rank of the group's units.
        layer: Filters and rank of the layer, at most.
        inputs: Inputs of the layer, at least.
    """
    (n, r), (most, ranks), area = own, layer, int(np.prod(kernel))
    if form == "pointwise":
        return area > 1
    if form == "low-rank":
        return n * inputs * area > r * (inputs * area + most)
    if form == "separable":
        return n * inputs * area > r * (inputs * kernel[0] + most * kernel[1])
    return n * inputs * area > r * (inputs + ranks * area + most)
