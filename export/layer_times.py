"""Times of single layers in onnxruntime, interleaved and in random order so that they can be compared, with noise.

The kernels are timed by the runtime itself. What the caller of a session pays on top (copies, layout changes at the
ends of a network of one layer) is no cost of the layer inside a network.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .layer_model import LayerShape, layer_model
from .ort_session import open_session
from .targets import Target

LAYOUT_CHANGES = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})
"""Operators at the ends of a layer that the next layer does without."""

ROUNDS = 12
"""Visits to a layer, if time allows."""

LEAST_ROUNDS = 4
VISIT = 3
"""Runs a visit. The first brings the layer into the caches, where a network finds its values, and is not counted."""

_CHUNK = 256
_NETWORK_RUNS = 25
_WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Time of one layer.

    Attributes:
        micros: Median time in microseconds (the mean of the middle half, as the runtime counts whole microseconds).
        mad: Median absolute deviation from it, of one run.
        rounds: Number of runs.
    """

    micros: float
    mad: float
    rounds: int

    @property
    def std_error(self) -> float:
        """Standard error of the median, as of normal noise whose scale is the MAD; at least half the clock's tick."""
        return max(1.2533 * 1.4826 * self.mad, 0.5) / self.rounds**0.5

    @staticmethod
    def of(samples: np.ndarray) -> Timing:
        """Summarises run times in microseconds, float64 [rounds]."""
        low, high = np.percentile(samples, (25, 75))
        middle = samples[(samples >= low) & (samples <= high)]
        centre = float(middle.mean())
        return Timing(centre, float(np.median(np.abs(samples - np.median(samples)))), len(samples))


def time_layers(
    shapes: Sequence[LayerShape],
    target: Target,
    *,
    threads: int = 1,
    seconds: float = 30.0,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> dict[LayerShape, Timing]:
    """Times layers alone, in onnxruntime.

    Args:
        shapes: The layers.
        target: Whose number grids and operator set they take.
        threads: Threads of the runtime.
        seconds: Time for all of them; fewer rounds are made if it is short, but never less than `LEAST_ROUNDS`.
        seed: Of the order and the inputs.
        progress: Called as `progress(done, total)`, in layers.

    Raises:
        EnvironmentLacksError: onnxruntime is not installed.
    """
    found: dict[LayerShape, Timing] = {}
    rng = np.random.default_rng(seed)
    order = [shapes[i] for i in rng.permutation(len(shapes))]
    for start in range(0, len(order), _CHUNK):
        chunk = order[start : start + _CHUNK]
        share = seconds * len(chunk) / len(order)
        models = {shape: layer_model(shape, target.scheme, target.opset) for shape in chunk}
        runs = _interleaved_profiles(models, threads, share, rng)
        found |= {shape: Timing.of(_layer_samples(events)) for shape, events in runs.items()}
        if progress:
            progress(start + len(chunk), len(order))
    return found


@dataclass(frozen=True)
class Kernel:
    """One kernel of a network.

    Attributes:
        name: As the runtime calls it.
        op: Operator.
        timing: Its time.
    """

    name: str
    op: str
    timing: Timing


@dataclass(frozen=True)
class Profile:
    """Where the time of a network goes.

    Attributes:
        kernels: Its kernels, in order.
        between: Time outside of kernels.
    """

    kernels: tuple[Kernel, ...]
    between: Timing


def time_kernels(
    model: onnx.ModelProto | Path, feeds: Mapping[str, np.ndarray], *, threads: int = 1, rounds: int = _NETWORK_RUNS
) -> Profile:
    """Times every kernel of a network.

    Args:
        model: The network.
        feeds: Its inputs by name.
        threads: Threads of the runtime.
        rounds: Runs.
    """
    with tempfile.TemporaryDirectory(prefix="secateur-profile-") as folder:
        session = open_session(model, threads=threads, profile=Path(folder) / "whole")
        totals, clock = [], clock_for(threads)
        for _ in range(_WARM_UP + rounds):
            began = clock()
            session.run(None, dict(feeds))
            totals.append((clock() - began) / 1e3)
        events = _kernel_events(Path(session.end_profiling()))
    per_run = len(events) // (_WARM_UP + rounds)
    first = events[:per_run]
    times = _durations(events, per_run)[_WARM_UP:]
    kernels = tuple(
        Kernel(event["name"].removesuffix("_kernel_time"), event["args"].get("op_name", ""), Timing.of(times[:, i]))
        for i, event in enumerate(first)
    )
    explained = sum(kernel.timing.micros for kernel in kernels)
    return Profile(kernels, Timing.of(np.array(totals[_WARM_UP:]) - explained))


def clock_for(threads: int) -> Callable[[], int]:
    """A thread's own time, which other work on the machine hardly disturbs; the wall clock for several. Nanoseconds."""
    return time.thread_time_ns if threads == 1 else time.perf_counter_ns


def _interleaved_profiles(
    models: Mapping[LayerShape, onnx.ModelProto], threads: int, seconds: float, rng: np.random.Generator
) -> dict[LayerShape, list[dict[str, Any]]]:
    """Kernel events of every model; the models take turns, in another order each round."""
    began = time.monotonic()
    inputs: dict[tuple[Any, ...], np.ndarray] = {}
    with tempfile.TemporaryDirectory(prefix="secateur-profile-") as folder:
        sessions = {}
        for number, (shape, model) in enumerate(models.items()):
            session = open_session(model, threads=threads, profile=Path(folder) / f"layer{number}")
            feeds = {}
            for value in session.get_inputs():
                key = (value.type, shape.batch, *value.shape[1:])
                if key not in inputs:
                    inputs[key] = _random(value.type, key[1:], rng)
                feeds[value.name] = inputs[key]
            sessions[shape] = (session, feeds)
        names = list(sessions)
        for done in range(ROUNDS):
            if done >= LEAST_ROUNDS and time.monotonic() - began > seconds:
                break
            for index in rng.permutation(len(names)):
                session, feeds = sessions[names[index]]
                for _ in range(VISIT):
                    session.run(None, feeds)
        return {shape: _kernel_events(Path(session.end_profiling())) for shape, (session, _) in sessions.items()}


def _layer_samples(events: Sequence[dict[str, Any]]) -> np.ndarray:
    """Time of the whole layer in each run, float64 [rounds], from the kernel events of all runs in order."""
    first = events[0]["name"]
    per_run = next((i for i, event in enumerate(events) if i and event["name"] == first), len(events))
    counted = [i for i, e in enumerate(events[:per_run]) if e["args"].get("op_name") not in LAYOUT_CHANGES]
    times = _durations(events, per_run)[:, counted].sum(axis=1)
    visits = times[: len(times) // VISIT * VISIT].reshape(-1, VISIT)
    return visits[1:, 1:].reshape(-1)  # the first visit warms up


def _durations(events: Sequence[dict[str, Any]], per_run: int) -> np.ndarray:
    """Microseconds, float64 [runs, kernels]."""
    whole = len(events) // per_run * per_run
    return np.array([event["dur"] for event in events[:whole]], dtype=np.float64).reshape(-1, per_run)


def _kernel_events(profile: Path) -> list[dict[str, Any]]:
    events = json.loads(profile.read_text(encoding="utf-8"))
    return [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]


def _random(type_: str, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    if type_ == "tensor(float)":
        return rng.standard_normal(shape).astype(np.float32)
    kind = np.int8 if type_ == "tensor(int8)" else np.uint8
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, shape, dtype=kind, endpoint=True)
