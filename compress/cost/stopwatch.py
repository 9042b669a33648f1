"""What measures latency for the planner: single layers, whole networks side by side, and the kernels of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from ...errors import EnvironmentLacksError
from ...export.layer_model import LayerShape
from ...export.layer_times import Profile
from ...export.targets import Target
from .latency_cache import LatencyCache
from .latency_table import LatencyTable, measure_table
from .whole import Network, measure_networks, network_profile

WIDE = 0.04
"""A 95 % interval of a share that is wider than this, as a part of the share, is measured for longer."""


def can_time(target: Target) -> bool:
    """Whether layers can be timed on a target's runtime here."""
    return target.runtime == "onnxruntime" and target.device == "cpu"


@dataclass(frozen=True)
class Share:
    """Latency of a network as a share of a baseline that ran beside it.

    Attributes:
        median: Median over rounds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        baseline: Median time of the baseline, in microseconds.
        micros: Median time of the network, in microseconds.
        warnings: What makes the numbers doubtful.
    """

    median: float
    low: float
    high: float
    baseline: float
    micros: float
    warnings: tuple[str, ...] = ()


class Stopwatch(Protocol):
    """Measures on the target's own runtime."""

    @property
    def batches(self) -> Sequence[int]:
        """Batch sizes that latency is asked for at."""
        ...

    def layers(self, wanted: Mapping[LayerShape, Sequence[np.ndarray]]) -> LatencyTable:
        """A table of layer times that covers these pairs of widths."""
        ...

    def shares(self, dense: Network, network: Network) -> Mapping[int, Share]:
        """Time of a network as a share of the dense one's, by batch size."""
        ...

    def profile(self, network: Network, batch: int) -> Profile:
        """Where the time of a network goes."""
        ...


@dataclass(frozen=True)
class OrtStopwatch:
    """Measures in onnxruntime, on this machine.

    Attributes:
        target: The target.
        batches: Batch sizes.
        threads: Threads of the runtime.
        seconds: Time for measuring layers that are not cached yet.
        compare_seconds: Time for comparing two networks, for each batch size.
        most_seconds: The same where the result is not clear after that.
        cached: Reads and keeps layer times in the user's cache folder.
        progress: Called as `progress(done, total)` while layers are measured.
    """

    target: Target
    batches: tuple[int, ...] = (1, 32)
    threads: int = 1
    seconds: float = 45.0
    compare_seconds: float = 3.0
    most_seconds: float = 9.0
    cached: bool = True
    progress: Callable[..., None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not can_time(self.target):
            raise EnvironmentLacksError(
                f"latency on {self.target.name} cannot be planned for",
                where="budget.latency",
                why=f"layers are timed in onnxruntime on the CPU; its runtime is {self.target.runtime}",
                hint="plan with a budget on macs or params, and keep latency as a gate",
            )

    def layers(self, wanted: Mapping[LayerShape, Sequence[np.ndarray]]) -> LatencyTable:
        """A table of layer times that covers these pairs of widths."""
        cache = LatencyCache(self.target, self.threads) if self.cached else None
        return measure_table(
            wanted, self.target, threads=self.threads, seconds=self.seconds, cache=cache, progress=self.progress
        )

    def shares(self, dense: Network, network: Network) -> dict[int, Share]:
        """Time of a network as a share of the dense one's, by batch size: paired and interleaved, as the gate does.

        Where the confidence interval is wide, as on a busy machine, more time is taken.
        """
        found = {}
        for batch in self.batches:
            seconds = self.compare_seconds
            found[batch] = self._share(dense, network, batch, seconds)
            while found[batch].high - found[batch].low > WIDE * found[batch].median and seconds < self.most_seconds:
                seconds *= 3
                found[batch] = self._share(dense, network, batch, seconds)
        return found

    def _share(self, dense: Network, network: Network, batch: int, seconds: float) -> Share:
        networks = {"dense": dense, "model": network}
        report = measure_networks(networks, batches=(batch,), threads=self.threads, seconds=seconds)
        model, base = report.at(batch, "model"), report.at(batch, "dense")
        ratio, times = model.speedup, (1e3 * base.median, 1e3 * model.median)
        return Share(1 / ratio.median, 1 / ratio.high, 1 / ratio.low, *times, report.warnings)

    def profile(self, network: Network, batch: int) -> Profile:
        """Where the time of a network goes."""
        return network_profile(network, batch=batch, threads=self.threads)
