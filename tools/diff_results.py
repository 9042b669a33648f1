"""How the results of two runs differ: accuracy at each stage, sizes, latencies and gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..verdict import GateResult
from .diff_side import Side
from .diff_values import Line, Quantity, Unit, paired
from .summary import stages


@dataclass(frozen=True)
class GateDifference:
    """A gate that two verdicts judge otherwise; None where a verdict lacks it."""

    name: str
    a: GateResult | None
    b: GateResult | None

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {"name": self.name, "a": _gate(self.a), "b": _gate(self.b)}


@dataclass(frozen=True)
class ResultDifference:
    """How results differ.

    Attributes:
        lines: What was measured of both.
        gates: The gates with another state, limit or measurement; none where one of the verdicts is not there.
        verdicts: What the gates said of each, in a few words; None where they have not run.
    """

    lines: tuple[Line, ...]
    gates: tuple[GateDifference, ...]
    verdicts: tuple[dict[str, Any] | None, dict[str, Any] | None]

    @property
    def same(self) -> bool:
        """Nothing differs."""
        return not self.gates and self.verdicts[0] == self.verdicts[1] and not any(line.differs for line in self.lines)

    def document(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "same": self.same,
            "lines": [line.document() for line in self.lines],
            "gates": [gate.document() for gate in self.gates],
            "verdict": {"a": self.verdicts[0], "b": self.verdicts[1]},
        }


def compare_results(a: Side, b: Side) -> ResultDifference:
    """Compares what two runs have measured so far."""
    gates_a, gates_b = _gates(a), _gates(b)
    names = dict.fromkeys([*gates_a, *gates_b]) if a.verdict and b.verdict else {}
    pairs = [GateDifference(name, gates_a.get(name), gates_b.get(name)) for name in names]
    return ResultDifference(
        lines=paired(dict(_lines(a)), dict(_lines(b))),
        gates=tuple(pair for pair in pairs if _gate(pair.a) != _gate(pair.b)),
        verdicts=(_verdict(a), _verdict(b)),
    )


def _lines(side: Side) -> Iterator[tuple[str, tuple[Unit, Quantity]]]:
    metric = (side.recipe or {}).get("metric", "metric")
    errors = [
        g.details["std_error"] for g in _results(side) if g.gate == "accuracy" and g.check == metric and g.details
    ]
    for row in stages(side.facts, _results(side)):
        error = errors[0] / 100 if errors and row["stage"] == "INT8 artifact" else None
        if row["test"] is not None:
            yield f"{metric}, {row['stage']}", ("share", Quantity(row["test"], std_error=error))
    for name, entry in side.files.items():
        if Path(name).suffix in (".onnx", ".plan"):
            yield name, ("bytes", Quantity(entry["bytes"]))
    for gate in _results(side):
        if gate.gate == "latency" and gate.details:
            timing = gate.details
            yield f"median latency, {gate.check}", ("seconds", Quantity(timing["model"]))
            if "ratio" in timing:
                low, high = timing["ratio_interval"]
                yield f"of the dense latency, {gate.check}", ("share", Quantity(timing["ratio"], interval=(low, high)))


def _results(side: Side) -> tuple[GateResult, ...]:
    return side.verdict.gates if side.verdict else ()


def _gates(side: Side) -> dict[str, GateResult]:
    return {f"{gate.gate}, {gate.check}": gate for gate in _results(side)}


def _gate(gate: GateResult | None) -> dict[str, Any] | None:
    """What is compared of a gate: its sentence and its details tell the same in other words."""
    if gate is None:
        return None
    return {key: value for key, value in asdict(gate).items() if key not in ("gate", "check", "text", "details")}


def _verdict(side: Side) -> dict[str, Any] | None:
    if side.verdict is None:
        return None
    failed = [f"{gate.gate}, {gate.check}" for gate in side.verdict.failures]
    states = [gate.state for gate in side.verdict.gates]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    return {"passed": side.verdict.passed, "heading": side.verdict.heading, "states": counts, "failed": failed}
