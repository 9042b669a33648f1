"""Turns a measurement and its limit into a result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..verdict import GateResult, State, quantity


@dataclass
class Judge:
    """Collects the results of one gate.

    Attributes:
        gate: Name of the gate.
        results: What was judged so far.
    """

    gate: str
    results: list[GateResult] = field(default_factory=list)

    def __call__(
        self,
        check: str,
        measured: float,
        limit: float | None = None,
        *,
        unit: str = "",
        at_least: bool = False,
        text: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> GateResult:
        """Records a value; it fails if it is beyond its limit or not a number."""
        if math.isnan(measured):
            state: State = "failed"
        elif limit is None:
            state = "measured"
        else:
            state = "passed" if (measured >= limit if at_least else measured <= limit) else "failed"
        value = measured if math.isfinite(measured) else None  # JSON has no infinity
        if value is None:
            text = f"{text} (the value is {measured})".strip()
        return self._add(GateResult(self.gate, check, state, value, limit, at_least, unit, text, dict(details or {})))

    def cannot(self, check: str, why: str, limit: float | None = None, *, unit: str = "") -> GateResult:
        """Records that something could not be measured: a failure if it has a limit, a remark otherwise."""
        return self._add(
            GateResult(self.gate, check, "failed" if limit is not None else "measured", None, limit, False, unit, why)
        )

    def skipped(self, check: str, why: str) -> GateResult:
        """Records that something needs a device that is not here; never a failure, and never a pass."""
        return self._add(GateResult(self.gate, check, "skipped", text=why))

    def broken(self, why: str) -> GateResult:
        """Records that the gate could not be judged at all."""
        return self._add(GateResult(self.gate, "prerequisites", "failed", text=why))

    def not_asked(self) -> GateResult:
        """Records that the gate was switched off."""
        return self._add(GateResult(self.gate, "", "not asked"))

    def _add(self, result: GateResult) -> GateResult:
        self.results.append(result)
        return result


def sentence(result: GateResult) -> str:
    """A result as a line of a test report."""
    measured, limit = quantity(result.measured, result.unit), quantity(result.limit, result.unit)
    relation = f", limit {'at least' if result.at_least else 'at most'} {limit}" if limit else ""
    name = f"{result.gate} {result.check}".strip()
    return f"{name}: {measured or 'not measured'}{relation}. {result.text}".strip()
