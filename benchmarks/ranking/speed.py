"""Timing: paired steps of contenders, whole estimators, and growth with probes, batch and width."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.api import capture, rank
from secateur.compress.heal.evaluate import cross_entropy
from secateur.compress.sensitivity.rank import METHODS
from secateur.errors import UserError

from .contenders import CONTENDERS, Task
from .networks import Network

Times = Mapping[str, list[float]]
"""Seconds by name, one a round; rounds belong together."""


@dataclass(frozen=True)
class Clock:
    """What is read.

    Attributes:
        now: Seconds.
        words: What they are.
    """

    now: Callable[[], float]
    words: str

    @staticmethod
    def of(threads: int) -> Clock:
        """Processor time with one thread, which other load barely changes; else wall-clock time."""
        if threads == 1:
            return Clock(time.process_time, "processor seconds of the one thread, which is robust to other load")
        return Clock(time.perf_counter, "wall-clock seconds")


@dataclass(frozen=True)
class Point:
    """A cost.

    Attributes:
        method: What was run.
        axis: `probes`, `batch` or `width`.
        value: On that axis.
        seconds: That it took.
    """

    method: str
    axis: str
    value: int
    seconds: float


def make_task(network: Network, batch: int, width: int | None = None) -> Task:
    """A network with random weights and a batch of random data."""
    torch.manual_seed(0)
    module = network.build(width or network.width).eval()
    images, labels = network.inputs(batch), torch.randint(0, network.classes, (batch,))
    return Task(module, capture(module, (images[:2],)), images, labels)


def probes(task: Task, clock: Clock, rounds: int, say: Callable[[str], None]) -> Times:
    """Seconds of one step of every contender that is installed; the first, which warms up, does not count."""
    steps = {}
    for name, prepare in CONTENDERS.items():
        try:
            steps[name] = prepare(task)
        except ImportError as error:
            say(f"{name}: left out: {error}")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            began = clock.now()
            with sdpa_kernel(SDPBackend.MATH):
                step()
            if turn:
                times[name].append(clock.now() - began)
        say(f"round {turn}/{rounds}")
    return times


def peak(task: Task, contender: str) -> float:
    """Peak resident memory of setting up and two steps, GiB above what it was before.

    Only meaningful in a process that has done nothing else: the operating system remembers the highest value.
    Linux only.
    """
    gc.collect()
    before = _resident()
    step = CONTENDERS[contender](task)
    with sdpa_kernel(SDPBackend.MATH):
        step()
        step()
    return _highest() - before


def estimators(network: Network, samples: int, clock: Clock, rounds: int) -> tuple[Times, Mapping[str, str]]:
    """Seconds of every estimator on one batch, interleaved, and what cannot be run with the reason.

    Stochastic ones take ten probes.
    """
    task = make_task(network, samples)
    times: dict[str, list[float]] = {}
    refused: dict[str, str] = {}
    for _ in range(rounds):
        for method in METHODS:
            if method in refused:
                continue
            options = {"precision": "bf16"} if method == "ehap" else {}
            try:
                times.setdefault(method, []).append(_timed(task, clock, method, probes=10, **options))
            except UserError as error:
                refused[method] = str(error).splitlines()[0]
    return {name: values for name, values in times.items() if values}, refused


def growth(network: Network, clock: Clock, quick: bool) -> list[Point]:
    """Cost of the Hessian's traces in both precisions and of the gates' Gauss-Newton diagonal."""
    methods = {"hap": {}, "ehap": {"precision": "bf16"}, "gate-ggn": {}}
    axes = {"probes": (2, 4, 8, 16), "batch": (16, 32, 64, 128), "width": (8, 16, 32, 64)}
    usual = {"probes": 4, "batch": 32, "width": 16}
    if quick:
        axes, usual = {axis: values[:2] for axis, values in axes.items()}, {"probes": 2, "batch": 8, "width": 8}
    points = []
    for axis, values in axes.items():
        for value in values:
            at = {**usual, axis: value}
            task = make_task(replace(network, width=at["width"]), at["batch"])
            for method, options in methods.items():
                if method in METHODS and not (method == "gate-ggn" and axis == "probes" and value != values[0]):
                    points.append(Point(method, axis, value, _timed(task, clock, method, at["probes"], **options)))
    return points


def _timed(task: Task, clock: Clock, method: str, probes: int, **options: object) -> float:
    loader = [(task.images, task.labels)]
    began = clock.now()
    rank(task.program, loader, cross_entropy, method=method, samples=len(task.labels), probes=probes, **options)
    return clock.now() - began


def _resident() -> float:
    """Resident memory now, GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def _highest() -> float:
    """Highest resident memory so far, GiB; that of `getrusage` would include the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20
