"""Latency of several models, measured so that they can be compared.

All sessions live in one process. A round runs each model once, in an order that alternates between rounds; drift of the
machine (frequency, other work) then hits all of them alike. A ratio is the median of per-round ratios with a bootstrap
confidence interval, never a quotient of two separate means.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from .cpu import cpu_facts
from .session import Session, milliseconds, open_model
from .tensorrt.device import clocks

__all__ = ["BatchLatency", "LatencyReport", "ModelLatency", "Ratio", "cpu_facts", "measure"]

MIN_ROUNDS = 7
MAX_ROUNDS = 2000
_RESAMPLES = 2000
_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Ratio:
    """Time of the first model over time of another: above 1, the other is faster.

    Attributes:
        median: Median of per-round ratios.
        low: Lower end of the 95 % bootstrap interval of the median.
        high: Upper end.
    """

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelLatency:
    """Times of one model, in milliseconds a batch.

    Attributes:
        median: 50th percentile.
        p10: 10th percentile.
        p90: 90th percentile.
        p99: 99th percentile.
        rounds: Number of measurements.
        speedup: Time of the first model over this one's.
    """

    median: float
    p10: float
    p90: float
    p99: float
    rounds: int
    speedup: Ratio


@dataclass(frozen=True)
class BatchLatency:
    """Times at one batch size, by model."""

    batch: int
    models: Mapping[str, ModelLatency]


@dataclass(frozen=True)
class LatencyReport:
    """Result of `measure`.

    Attributes:
        baseline: Name of the first model.
        batches: By batch size, in the order asked for.
        environment: Processor, instruction sets, onnxruntime version, threads, seed, load average before and after.
        warnings: What makes the numbers doubtful.
    """

    baseline: str
    batches: tuple[BatchLatency, ...]
    environment: Mapping[str, Any]
    warnings: tuple[str, ...]

    def at(self, batch: int, model: str) -> ModelLatency:
        """Times of a model at a batch size."""
        return next(entry.models[model] for entry in self.batches if entry.batch == batch)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def measure(
    paths: Mapping[str, Path],
    inputs: Mapping[str, np.ndarray] | None = None,
    *,
    batches: Sequence[int] = (1,),
    threads: int = 1,
    rounds: int | None = None,
    budget_seconds: float = 5.0,
    warmup: int = 5,
    seed: int = 0,
    provider: str = "cpu",
    clock: Callable[[], int] = time.perf_counter_ns,
) -> LatencyReport:
    """Measures models side by side, paired and interleaved.

    Args:
        paths: ONNX files or engines by name; the first is the baseline of the ratios.
        inputs: Example inputs by name: integers are drawn from their values, and they are not needed for float inputs.
        batches: Batch sizes.
        threads: Threads of the runtime.
        rounds: Measurements a batch size; chosen by the budget if left out.
        budget_seconds: Time spent on one batch size.
        warmup: Runs of each model before the first measurement.
        seed: Of the random inputs and the bootstrap.
        provider: What onnxruntime computes with; see `ort_session.PROVIDERS`.
        clock: Nanoseconds. `time.thread_time_ns` leaves out the time in which other work had the processor; it sees
            the calling thread only.

    Raises:
        UserError: No model, a batch size below 1, or an input whose shape is unknown.
        EnvironmentLacksError: onnxruntime is not installed.
    """
    if not paths or any(batch < 1 for batch in batches) or threads < 1:
        raise UserError("latency needs a model, batch sizes of at least 1 and at least one thread")
    sessions = {name: open_model(path, threads=threads, provider=provider) for name, path in paths.items()}
    load_before, clocks_before = _load(), clocks()
    entries = []
    for batch in batches:
        feeds = {name: make_feeds(s, batch, inputs or {}, seed=seed) for name, s in sessions.items()}
        times = _interleave(sessions, feeds, rounds=rounds, budget_seconds=budget_seconds, warmup=warmup, clock=clock)
        entries.append(BatchLatency(batch, _summarise(times, seed)))
    load_after = _load()
    return LatencyReport(
        baseline=next(iter(paths)),
        batches=tuple(entries),
        environment={
            **_environment(threads, seed, load_before, load_after),
            **({"provider": provider} if provider != "cpu" else {}),
            **({"gpu_clocks": {"before": clocks_before, "after": clocks()}} if clocks_before else {}),
        },
        warnings=tuple(_warnings(threads, load_before)),
    )


def make_feeds(
    session: Session, batch: int, examples: Mapping[str, np.ndarray], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random inputs for a session: normal floats; integers drawn from the example's values.

    Args:
        session: Gives names, types and shapes; a dynamic axis 0 takes the batch size.
        batch: Batch size.
        examples: Example inputs by name.
        seed: Of the random numbers; an input of the same name and shape gets the same values in every session.

    Raises:
        UserError: An integer input or a dynamic axis besides the batch has no example, or the batch is fixed to another
            size.
    """
    feeds = {}
    for spec in session.get_inputs():
        example = examples.get(spec.name)
        shape = _shape(spec.name, spec.shape, batch, example)
        rng = np.random.default_rng([seed, *spec.name.encode()])
        dtype = np.dtype(_NUMPY_TYPES[spec.type])
        if np.issubdtype(dtype, np.floating):
            feeds[spec.name] = rng.standard_normal(shape).astype(dtype)
        elif example is not None:
            feeds[spec.name] = rng.choice(np.ravel(example), size=shape).astype(dtype)
        else:
            raise UserError(
                f"input {spec.name} holds integers, and random ones may be out of range",
                where=spec.name,
                hint="pass example inputs",
            )
    return feeds


def _shape(name: str, shape: Sequence[int | str], batch: int, example: np.ndarray | None) -> tuple[int, ...]:
    sizes = []
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            sizes.append(size)
        elif axis == 0:
            sizes.append(batch)
        elif example is not None:
            sizes.append(example.shape[axis])
        else:
            raise UserError(f"axis {axis} of input {name} is dynamic", where=name, hint="pass example inputs")
    if shape and isinstance(shape[0], int) and shape[0] != batch:
        raise UserError(
            f"the model has a fixed batch of {shape[0]}, not {batch}",
            where=name,
            hint=f"measure at batch {shape[0]}, or export with a dynamic batch",
        )
    return tuple(sizes)


def _interleave(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, dict[str, np.ndarray]],
    *,
    rounds: int | None,
    budget_seconds: float,
    warmup: int,
    clock: Callable[[], int],
) -> dict[str, np.ndarray]:
    """Milliseconds by model, float64 [rounds]."""
    names = list(sessions)
    for name in names:
        for _ in range(warmup):
            sessions[name].run(None, feeds[name])
    count = rounds
    if count is None:
        trial = sum(_milliseconds(sessions[name], feeds[name], time.perf_counter_ns) for name in names) / 1e3
        count = int(np.clip(budget_seconds / max(trial, 1e-6), MIN_ROUNDS, MAX_ROUNDS))
    times = {name: np.empty(count) for name in names}
    for index in range(count):
        for name in names if index % 2 == 0 else reversed(names):
            times[name][index] = _milliseconds(sessions[name], feeds[name], clock)
    return times


def _milliseconds(session: Session, feeds: dict[str, np.ndarray], clock: Callable[[], int]) -> float:
    """One run, by the session's own clock if it has one: a device works on while the host goes on."""
    on_device = milliseconds(session, feeds)
    if on_device is not None:
        return on_device
    start = clock()
    session.run(None, feeds)
    return (clock() - start) / 1e6


def _summarise(times: Mapping[str, np.ndarray], seed: int) -> dict[str, ModelLatency]:
    base = next(iter(times.values()))
    summary = {}
    for name, measured in times.items():
        p10, median, p90, p99 = (float(v) for v in np.percentile(measured, (10, 50, 90, 99)))
        ratio = median_interval(base / measured, seed=seed)
        summary[name] = ModelLatency(median, p10, p90, p99, len(measured), ratio)
    return summary


def median_interval(values: np.ndarray, *, seed: int = 0, confidence: float = 0.95) -> Ratio:
    """Median of a sample with its percentile bootstrap interval (Efron 1979).

    Args:
        values: float [samples].
        seed: Of the resampling.
        confidence: Coverage of the interval.
    """
    rng = np.random.default_rng(seed)
    medians = np.median(values[rng.integers(0, len(values), size=(_RESAMPLES, len(values)))], axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(medians, (tail, 100 - tail))
    return Ratio(float(np.median(values)), float(low), float(high))


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _environment(threads: int, seed: int, before: float | None, after: float | None) -> dict[str, Any]:
    import onnxruntime

    return {
        **cpu_facts(),
        "onnxruntime": onnxruntime.__version__,
        "threads": threads,
        "seed": seed,
        "load_average": {"before": before, "after": after},
    }


def _warnings(threads: int, load: float | None) -> list[str]:
    found, facts = [], cpu_facts()
    if load is not None and load > max(facts["cores"] - threads, 0) + 0.5:
        found.append(f"load average {load} on {facts['cores']} cores: other work disturbs the measurement")
    if threads > facts["cores"]:
        found.append(f"{threads} threads on {facts['cores']} cores")
    if threads > 1:
        found.append("with several threads, a pre-empted worker holds up every barrier; trust one thread more")
    return found
