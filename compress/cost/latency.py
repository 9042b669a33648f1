"""Latency as a function of the widths: layers from the table, everything else by the elements that it writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...export.layer_model import LayerShape
from ...export.layer_times import Kernel, Profile, Timing
from ...export.ort_kernels import FLOAT_CONVS, FLOAT_MATMULS, INTEGER_CONVS, INTEGER_MATMULS
from ...passes.program import Program
from .axes import Axis, AxisReader, sizes, varies
from .latency_table import LatencyTable, Pair
from .sites import Site
from .terms import Column, Term, product_term

_Point = tuple[LayerShape, Pair]

LAYER_KERNELS = INTEGER_CONVS | FLOAT_CONVS | INTEGER_MATMULS | FLOAT_MATMULS


@dataclass(frozen=True)
class Rest:
    """A kernel that is no layer (an addition, a pool): its time grows with what it writes.

    Attributes:
        node: Name of the program's node, or of the runtime's.
        micros: Time at full width.
        elements: Elements written, by the widths; constant where they are not known.
    """

    node: str
    micros: float
    elements: Axis


@dataclass(frozen=True)
class LatencyModel:
    """Latency of the quantised network at one batch size.

    Attributes:
        batch: Batch size.
        table: Times of layers alone.
        scale: What a layer in the network costs, as a multiple of what it costs alone.
        sites: The layers.
        rest: The other kernels.
        between: Microseconds outside of kernels.
        full: int64 [groups]: full widths.
    """

    batch: int
    table: LatencyTable
    scale: float
    sites: tuple[Site, ...]
    rest: tuple[Rest, ...]
    between: float
    full: np.ndarray

    @property
    def name(self) -> str:
        """What the cost is called."""
        return f"latency at batch {self.batch}"

    @property
    def column(self) -> Column:
        """The latency in microseconds, as the planner reads it."""
        terms = (*(self.site_term(site) for site in self.sites), *(self.rest_term(rest) for rest in self.rest))
        return Column(self.name, terms, self.between)

    def site_term(self, site: Site) -> Term:
        """Time of a layer."""
        axes = tuple(axis for axis in (site.inputs, site.outputs) if varies(axis))
        return Term(axes, _Lookup(self.table, self.family(site), site.inputs, site.outputs, self.scale))

    def rest_term(self, rest: Rest) -> Term:
        """Time of a kernel that is no layer."""
        return product_term([rest.elements], rest.micros / int(sizes(rest.elements, self.full[None])[0]))

    def micros(self, widths: np.ndarray) -> float:
        """Predicted microseconds at widths int64 [groups]."""
        return float(self.column.cost(widths[None])[0])

    def noise(self, widths: np.ndarray, others: np.ndarray) -> float:
        """Standard error of the predicted difference between two choices of widths, in microseconds."""
        used: Counter[_Point] = Counter()
        for row, sign in ((widths, 1), (others, -1)):
            for site in self.sites:
                used[self.family(site), _pair(site, row)] += sign
        errors = [count * self.table.timing(*point).std_error for point, count in used.items() if count]
        return self.scale * float(np.sqrt(np.sum(np.square(errors))))

    def corrected(self, widths: np.ndarray, profile: Profile, micros: float) -> LatencyModel:
        """The model with the table refined at the shapes of a network that was measured, so that it predicts its time.

        Args:
            widths: int64 [groups]: widths of the network.
            profile: Where its time goes.
            micros: Its measured time.
        """
        refined = self.learnt(self.sites, widths, profile)
        return refined.shifted(micros - refined.micros(widths))

    def learnt(self, sites: Sequence[Site], widths: np.ndarray, profile: Profile) -> LatencyModel:
        """The model with the table refined at the shapes of a network, whose layers may be others.

        Args:
            sites: Layers of that network.
            widths: int64 [its groups]: its widths.
            profile: Where its time goes.
        """
        found = _layer_times(sites, self.batch, profile.kernels, widths)
        return replace(self, table=self.table.replaced({p: _scaled(t, 1 / self.scale) for p, t in found.items()}))

    def shifted(self, micros: float) -> LatencyModel:
        """The model with so much more time outside of what it knows."""
        return replace(self, between=self.between + micros)

    def family(self, site: Site) -> LayerShape:
        """Shape of a layer at the batch size, without its channels."""
        return replace(site.family, batch=self.batch)


def latency_model(
    program: Program, sites: Sequence[Site], table: LatencyTable, profile: Profile, *, batch: int
) -> LatencyModel:
    """The model of a program's quantised network.

    Args:
        program: The program at full width.
        sites: Its layers.
        table: Times of their shapes.
        profile: Where the time of its quantised network goes at full width.
        batch: Batch size.
    """
    reader = AxisReader(program)
    nodes = {node.name: node for node in program.graph.nodes if hasattr(node.meta.get("val"), "shape")}
    layers = {site.node for site in sites}
    rest = [
        Rest(k.name, k.timing.micros, reader.elements(nodes[k.name]) if k.name in nodes else reader.fixed)
        for k in profile.kernels
        if not (k.name in layers and k.op in LAYER_KERNELS)
    ]
    full = np.array([group.width for group in program.groups], dtype=np.int64)
    there = _layer_times(sites, batch, profile.kernels, full)
    alone = {point: table.timing(*point) for point in there}
    # Each layer counts once for every site of its shape.
    uses = Counter((replace(site.family, batch=batch), _pair(site, full)) for site in sites)
    summed = [sum(uses[point] * times[point].micros for point in there) for times in (there, alone)]
    scale = summed[0] / summed[1] if summed[1] > 0 else 1.0
    return LatencyModel(batch, table, scale, tuple(sites), tuple(rest), profile.between.micros, full)


def wanted_pairs(
    sites: Sequence[Site], reachable: Callable[[Axis], np.ndarray], batches: Sequence[int]
) -> Mapping[LayerShape, list[np.ndarray]]:
    """The pairs of widths that a search may ask a table for, by family.

    Args:
        sites: The layers.
        reachable: The sizes that an axis can have.
        batches: Batch sizes.
    """
    wanted: dict[LayerShape, list[np.ndarray]] = {}
    for site in sites:
        inputs, outputs = reachable(site.inputs), reachable(site.outputs)
        if site.inputs == site.outputs:
            pairs = np.stack([inputs, outputs], axis=1)
        else:
            grid = np.meshgrid(inputs, outputs, indexing="ij")
            pairs = np.stack([side.reshape(-1) for side in grid], axis=1)
        for batch in batches:
            wanted.setdefault(replace(site.family, batch=batch), []).append(pairs)
    return wanted


@dataclass(frozen=True)
class _Lookup:
    """Time of a site as a function of those of its axes that vary."""

    table: LatencyTable
    family: LayerShape
    inputs: Axis
    outputs: Axis
    scale: float

    def __call__(self, at: np.ndarray) -> np.ndarray:
        columns = iter(at.T)
        inputs, outputs = (
            next(columns) if varies(axis) else np.full(len(at), axis[0]) for axis in (self.inputs, self.outputs)
        )
        return self.scale * self.table.at(self.family, np.stack([inputs, outputs], axis=1))


def _pair(site: Site, widths: np.ndarray) -> tuple[int, int]:
    inputs, outputs = (int(sizes(axis, widths[None])[0]) for axis in (site.inputs, site.outputs))
    return inputs, outputs


def _layer_times(
    sites: Sequence[Site], batch: int, kernels: Sequence[Kernel], widths: np.ndarray
) -> dict[_Point, Timing]:
    """Times of layers inside a network; several layers of one shape give one time."""
    nodes = {site.node: site for site in sites}
    found: dict[_Point, list[Timing]] = {}
    for kernel in kernels:
        if kernel.name in nodes and kernel.op in LAYER_KERNELS:
            site = nodes[kernel.name]
            found.setdefault((replace(site.family, batch=batch), _pair(site, widths)), []).append(kernel.timing)
    return {point: _pooled(times) for point, times in found.items()}


def _pooled(times: Sequence[Timing]) -> Timing:
    """One time of several layers of the same shape."""
    micros, mad = (float(np.median([getattr(t, name) for t in times])) for name in ("micros", "mad"))
    return Timing(micros, mad, sum(t.rounds for t in times))


def _scaled(timing: Timing, factor: float) -> Timing:
    return Timing(timing.micros * factor, timing.mad * factor, timing.rounds)
