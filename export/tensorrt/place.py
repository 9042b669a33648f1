"""Where an engine's buffers lie and how its work is ordered and timed: a CUDA device, seen through torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Place(Protocol):
    """Memory, a stream and a clock."""

    @property
    def handle(self) -> int:
        """The stream, as the library takes it."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised buffer."""
        ...

    def upload(self, value: Tensor) -> Tensor:
        """A copy of a host tensor in a buffer."""
        ...

    def download(self, value: Tensor) -> Tensor:
        """A copy of a buffer on the host, complete when this returns."""
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """The work as a graph that starts with one call; None if it cannot be captured."""
        ...

    def milliseconds(self, work: Callable[[], None]) -> float:
        """How long the device takes over the work."""
        ...


class CudaPlace:
    """A CUDA device and a stream of its own.

    Args:
        index: Number of the device.
    """

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        self.stream = torch.cuda.Stream(self.device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    @property
    def handle(self) -> int:
        """The stream, as the library takes it."""
        return self.stream.cuda_stream

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised buffer."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def upload(self, value: Tensor) -> Tensor:
        """A copy of a host tensor in a buffer."""
        with torch.cuda.stream(self.stream):
            return value.contiguous().to(self.device)

    def download(self, value: Tensor) -> Tensor:
        """A copy of a buffer on the host, complete when this returns."""
        with torch.cuda.stream(self.stream):
            copy = value.to("cpu")
        self.stream.synchronize()
        return copy

    def capture(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """The work as a CUDA graph; None if the driver or the library refuses."""
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream):
                work()
        except RuntimeError:
            torch.cuda.synchronize(self.device)
            return None

        def replay() -> None:
            with torch.cuda.stream(self.stream):
                graph.replay()

        return replay

    def milliseconds(self, work: Callable[[], None]) -> float:
        """How long the device takes over the work, between two events on its stream."""
        self._start.record(self.stream)
        work()
        self._end.record(self.stream)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end))
