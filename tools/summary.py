"""What a run came to, as tables and as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from ..pipeline import CompileResult
from ..verdict import GateResult


def as_document(result: CompileResult, report: Path | None) -> dict[str, Any]:
    """The JSON document of a run."""
    return {
        "run": str(result.directory),
        "artifact": str(result.artifact) if "export" in result.facts else None,
        "report": str(report) if report else None,
        "passed": result.verdict.passed if result.verdict else None,
        "steps": result.facts,
    }


def summary_table(result: CompileResult) -> Table:
    """The network at each stage: accuracy on the test set, size, and latency of the artifact."""
    table = Table(title="accuracy on the whole test set, cost, latency", title_justify="left")
    for heading in ("", "test", "params", "MACs", "file"):
        table.add_column(heading, justify="left" if not heading else "right")
    batches = _latencies(result)
    for batch in batches:
        table.add_column(f"batch {batch}", justify="right")
    for row in stages(result.facts, result.verdict.gates if result.verdict else ()):
        cells = [row["stage"], _percent(row["test"]), _count(row["params"]), _count(row["macs"]), _bytes(row["bytes"])]
        table.add_row(*cells, *(_ms(row["latency"].get(batch)) for batch in batches))
    return table


def stages(facts: Mapping[str, Mapping[str, Any]], gates: tuple[GateResult, ...]) -> list[dict[str, Any]]:
    """One row a stage: `stage`, `test` (share), `params`, `macs`, `bytes`, `latency` (seconds by batch size).

    Of a run that has not finished, the stages that it has reached.
    """
    artifact = next((g.details for g in gates if g.gate == "accuracy" and g.details), {})
    size = next((g.details for g in gates if g.gate == "size" and g.details), {})
    latency = {g.details["batch"]: g.details for g in gates if g.gate == "latency" and g.details}
    scored = ("capture", "apply", "heal", "quantize")
    score = {step: facts[step]["score"].get("test") for step in scored if step in facts}
    before = facts.get("heal", {}).get("score_before", {"pruned": score.get("apply")})
    reached = [
        ("capture", "dense FP32", score.get("capture"), "dense"),
        *(("apply", name, test, None) for name, test in before.items()),
        ("heal", "healed", score.get("heal"), None),
        ("quantize", "INT8 artifact", artifact.get("model", score.get("quantize")), "model"),
    ]
    rows = [
        (stage, test, facts["capture" if step == "capture" else "apply"]["cost"], file)
        for step, stage, test, file in reached
        if step in facts
    ]
    return [
        {
            "stage": stage,
            "test": test,
            "params": cost["params"],
            "macs": cost["macs"],
            "bytes": size.get(file) if file else None,
            "latency": {batch: found.get(file) for batch, found in latency.items()} if file else {},
        }
        for stage, test, cost, file in rows
    ]


def step_table(result: CompileResult, until: str) -> Table:
    """The facts of one step."""
    table = Table("fact", "value", title=f"{until}: {result.directory}", title_justify="left")
    for key, value in result.facts[until].items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
        elif isinstance(value, list):
            value = f"{len(value)} entries"
        table.add_row(key, _plain(value))
    return table


def _latencies(result: CompileResult) -> list[int]:
    return [g.details["batch"] for g in (result.verdict.gate("latency") if result.verdict else ()) if g.details]


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.1f} k" if number >= 1e3 else str(number)


def _bytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e3:.0f} kB"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g} ms"
