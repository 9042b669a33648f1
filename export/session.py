"""Opens whatever can be run: ONNX files in onnxruntime, engines in TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .ort_session import open_session
from .tensorrt.engine_file import PLAN_SUFFIX
from .tensorrt.session import open_engine

ENGINE_SUFFIXES = (PLAN_SUFFIX, ".engine", ".rtx")
"""Suffixes of engine files."""


class Session(Protocol):
    """What gates and measurements use of a session; onnxruntime's `InferenceSession` is one."""

    def get_inputs(self) -> Any:
        """Inputs, each with `name`, `shape` and `type`."""
        ...

    def get_outputs(self) -> Any:
        """Outputs, each with `name`, `shape` and `type`."""
        ...

    def run(self, output_names: Any, input_feed: Any, /) -> Any:
        """Outputs, in order; all if the names are None."""
        ...


def open_model(
    path: Path, *, threads: int = 1, literal: bool = False, provider: str = "cpu", onnx_file: Path | None = None
) -> Session:
    """Opens an ONNX file or an engine.

    Args:
        path: The file; its suffix says what it is.
        threads: Threads of onnxruntime.
        literal: onnxruntime executes quantisation operators as they are written.
        provider: What onnxruntime computes with: see `ort_session.PROVIDERS`.
        onnx_file: The network that an engine should compute.

    Raises:
        EnvironmentLacksError: The runtime, the provider or the device is missing.
        UserError: An engine is foreign or stale.
    """
    if path.suffix in ENGINE_SUFFIXES:
        return open_engine(path, onnx_file=onnx_file)
    return open_session(path, threads=threads, literal=literal, provider=provider)


def milliseconds(session: Session, feeds: Mapping[str, np.ndarray]) -> float | None:
    """One run by the session's own clock (a device's events); None for a session without one."""
    clock = getattr(session, "milliseconds", None)
    return clock(feeds) if clock is not None else None
