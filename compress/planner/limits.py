"""From budgets to limits: what each budget allows of which cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from ...errors import UserError
from ...export.layer_model import LayerShape
from ...export.targets import Target
from ...passes.program import Program
from ..budget import Amount, Budget
from ..cost.axes import Axis
from ..cost.file_size import size_column
from ..cost.latency import LatencyModel, latency_model, wanted_pairs
from ..cost.memory import FLOAT_BYTES, memory_columns, peak
from ..cost.model import CostModel
from ..cost.sites import Site, layer_sites
from ..cost.stopwatch import Share, Stopwatch
from ..cost.terms import Column
from ..cost.whole import Network, float_network, integer_network
from .levels import reachable

PLANNED = ("params", "macs", "latency", "size", "memory")
"""Budgets that can be planned for."""

WORDS = {
    "params": "parameters",
    "macs": "multiply-accumulates",
    "latency": "latency",
    "size": "size of the file",
    "memory": "activation memory",
}


Wanted = Mapping[LayerShape, Sequence[np.ndarray]]
"""Pairs of widths, int64 [pairs, 2], by family of layer shapes."""


@dataclass(frozen=True)
class Limit:
    """A limit on one cost.

    Attributes:
        budget: Name of the budget.
        amount: What was asked for.
        column: The cost as a function of the widths.
        dense: That of the dense FP32 model.
        bound: The limit, in the unit of the cost.
        typed: Multiplies a cost to give the number that the budget would be written with (bytes, seconds, counts).
        margin: Share of the budget that `bound` keeps free.
    """

    budget: str
    amount: Amount
    column: Column
    dense: float
    bound: float
    typed: float = 1.0
    margin: float = 0.0

    @property
    def label(self) -> str:
        """What the cost is called: `latency at batch 32`."""
        return self.column.name if self.budget == "latency" else WORDS[self.budget]

    def text(self, cost: float) -> str:
        """A cost as this budget would be written, rounded up so that it is feasible as typed."""
        cost = cost / (1 - self.margin)
        if self.amount.relative:
            return f"{ceil(cost / self.dense * 10000 - 1e-6) / 100:g}%"
        value = cost * self.typed
        if self.budget == "latency":
            return f"{ceil(value * 1e6 - 1e-6) / 1e3:g}ms"
        return _count(value) if self.budget in ("params", "macs") else f"{ceil(value - 1e-6) / 1e3:g}kB"


@dataclass(frozen=True)
class Measured:
    """What was measured of the network at full width.

    Attributes:
        models: Latency by batch size.
        shares: Time of the whole quantised network as a share of the dense one's.
    """

    models: Mapping[int, LatencyModel]
    shares: Mapping[int, Share]

    def dense(self, batch: int) -> float:
        """Time of the dense FP32 network in the unit of the model: what its share says of the quantised one's."""
        model = self.models[batch]
        return self.unit(batch) / self.shares[batch].median if self.shares[batch].median > 0 else model.between

    def unit(self, batch: int) -> float:
        """Time that the model was first fitted to: that of the quantised network at full width."""
        return self.whole[batch]

    @cached_property
    def whole(self) -> Mapping[int, float]:
        """Predicted time at full width, by batch size."""
        return {batch: model.micros(model.full) for batch, model in self.models.items()}


class Costs:
    """Costs of a program, each worked out when a budget first asks for it.

    Args:
        program: The program.
        target: The target.
        stopwatch: Measures latency; needed for budgets on it.
    """

    def __init__(self, program: Program, target: Target, stopwatch: Stopwatch | None) -> None:
        self.program, self.target, self.stopwatch = program, target, stopwatch
        self.model = CostModel.of(program)
        self.full = np.array([group.width for group in program.groups], dtype=np.int64)
        self._measured: Measured | None = None

    @property
    def timer(self) -> Stopwatch:
        """The stopwatch.

        Raises:
            UserError: There is none.
        """
        if self.stopwatch is None:
            raise UserError(
                "a budget on latency needs something that measures it",
                where="budget.latency",
                hint="pass a stopwatch, or plan with --max-macs and keep latency as a gate",
            )
        return self.stopwatch

    @cached_property
    def dense_network(self) -> Network:
        """The dense network in FP32."""
        return float_network(self.program, self.target)

    @cached_property
    def network(self) -> Network:
        """The dense network on the target's grids."""
        return integer_network(self.program, self.target)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The layers."""
        return layer_sites(self.program, self.network.integer)

    @cached_property
    def size(self) -> Column:
        """Bytes of the file."""
        return size_column(self.program, self.sites, self.network)

    @cached_property
    def memory(self) -> tuple[Column, ...]:
        """Bytes alive at each moment."""
        return memory_columns(self.program)

    def measure(self, widths: Sequence[np.ndarray], further: Wanted | None = None) -> Measured:
        """Measures what the latency of all choices of these allowed widths depends on, once.

        Args:
            widths: Allowed widths of each group.
            further: Shapes of layers that there may be beside those of the program.

        Raises:
            UserError: There is no stopwatch.
        """
        if self._measured is not None:
            return self._measured
        batches = self.timer.batches

        def sizes_of(axis: Axis) -> np.ndarray:
            return reachable(axis, widths)

        wanted = {family: list(pairs) for family, pairs in wanted_pairs(self.sites, sizes_of, batches).items()}
        for family, pairs in (further or {}).items():
            wanted.setdefault(family, []).extend(pairs)
        table = self.timer.layers(wanted)
        shares = self.timer.shares(self.dense_network, self.network)
        models = {}
        for batch in batches:
            profile = self.timer.profile(self.network, batch)
            models[batch] = latency_model(self.program, self.sites, table, profile, batch=batch)
        self._measured = Measured(models, shares)
        return self._measured

    def limits(
        self, budget: Budget, models: Mapping[int, LatencyModel], measured: Measured | None, margin: float
    ) -> tuple[Limit, ...]:
        """The limits that a budget sets.

        Args:
            budget: The budget.
            models: Latency models as they are now, by batch size; empty without a budget on latency.
            measured: What was measured at full width.
            margin: Share of a latency budget that is kept free, as measurements vary.
        """
        found: list[Limit] = []
        for name in PLANNED:
            amount = budget.amount(name)
            if amount is None:
                continue
            if name in ("params", "macs"):
                dense = getattr(self.model.dense, name)
                found.append(Limit(name, amount, self.model.columns()[name], dense, int(amount.of(dense) + 1e-6)))
            elif name == "size":
                dense = self.dense_network.size
                found.append(Limit(name, amount, self.size, dense, amount.of(dense)))
            elif name == "memory":
                dense = peak(memory_columns(self.program, bytes_per_element=FLOAT_BYTES), self.full)
                found += [Limit(name, amount, column, dense, amount.of(dense)) for column in self.memory]
            elif measured is not None:
                found += _latency_limits(amount, models, measured, margin)
        return tuple(found)


def _latency_limits(
    amount: Amount, models: Mapping[int, LatencyModel], measured: Measured, margin: float
) -> list[Limit]:
    """A share holds at every batch size, a time at the first."""
    found = []
    for batch, model in list(models.items())[: None if amount.relative else 1]:
        dense = measured.dense(batch)
        seconds = 1e-6 * measured.shares[batch].micros / measured.unit(batch)  # of one unit of the model
        bound = amount.value * dense if amount.relative else amount.value / seconds
        found.append(Limit("latency", amount, model.column, dense, bound * (1 - margin), seconds, margin))
    return found


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if value >= size:
            return f"{ceil(value * 1000 / size - 1e-6) / 1000:g}{unit}"
    return f"{ceil(value - 1e-6) / 1000:g}k"
