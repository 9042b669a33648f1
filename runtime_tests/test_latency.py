"""Gate: latency, in paired and interleaved runs of the artifact and the dense baseline.

A limit in per cent is judged, at every batch size, on the median of the per-round ratios; a limit in time on the median
time at the first batch size. Where the confidence interval of the ratio holds the limit, the result says so: a longer
measurement may decide otherwise.
"""

from typing import Any

import pytest

from secateur.export.latency import LatencyReport, ModelLatency, measure
from secateur.gates import LatencyGate
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.subject import Subject


def test_latency(gate: LatencyGate, subject: Subject, judge: Judge) -> None:
    if subject.unverified:
        for batch in gate.batches:
            judge.skipped(f"batch {batch}", subject.unverified)
        pytest.skip(subject.unverified)
    files = {name: path for name, path in (("dense", subject.dense), ("model", subject.model)) if path}
    for path in files.values():
        subject.runner(path)  # says why, if the runtime does not load it
    paths = {name: run for name, path in files.items() if (run := subject.runnable(path))}
    report = measure(
        paths,
        subject.example_feeds(),
        batches=gate.batches,
        threads=gate.threads,
        budget_seconds=gate.seconds,
    )
    for batch in gate.batches:
        _judge_batch(gate, report, batch, judge)


def _judge_batch(gate: LatencyGate, report: LatencyReport, batch: int, judge: Judge) -> None:
    model, limit = report.at(batch, "model"), gate.limit
    details: dict[str, Any] = {
        "batch": batch,
        "model": model.median / 1e3,
        "model_timing": _seconds(model),
        "rounds": model.rounds,
        "environment": dict(report.environment),
        "warnings": list(report.warnings),
    }
    text = ""
    if report.baseline == "dense":
        dense, speedup = report.at(batch, "dense"), model.speedup
        interval = [1 / speedup.high, 1 / speedup.low]
        details |= {"dense": dense.median / 1e3, "dense_timing": _seconds(dense)}
        details |= {"ratio": 1 / speedup.median, "ratio_interval": interval}
        text = (
            f"{model.median:.3g} ms against {dense.median:.3g} ms: "
            f"{speedup.median:.2f} times as fast ({speedup.low:.2f} to {speedup.high:.2f})"
        )
        if limit and limit.relative and interval[0] <= limit.value <= interval[1]:
            text += "; the limit lies within the confidence interval"
    text = "; ".join((text, *report.warnings)).removeprefix("; ")

    check = f"batch {batch}"
    if limit and limit.relative:
        if "ratio" in details:
            judge(check, 100 * details["ratio"], 100 * limit.value, unit="%", text=text, details=details)
        else:
            judge.cannot(
                check, f"{gate.max} of the dense baseline: there is no dense.onnx", 100 * limit.value, unit="%"
            )
        return
    bound = 1e3 * limit.value if limit and batch == gate.batches[0] else None
    judge(check, model.median, bound, unit="ms", text=text, details=details)


def _seconds(timing: ModelLatency) -> dict[str, float]:
    return {name: getattr(timing, name) / 1e3 for name in ("median", "p10", "p90", "p99")}
