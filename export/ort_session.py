"""onnxruntime sessions with pinned options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EnvironmentLacksError, UserError, did_you_mean

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_WARNINGS_OFF = 3

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
}
"""What onnxruntime computes with, by our name for it."""


def open_session(
    model: Path | str | onnx.ModelProto,
    *,
    threads: int = 1,
    literal: bool = False,
    spinning: bool = False,
    optimised: Path | None = None,
    profile: Path | None = None,
    provider: str = "cpu",
) -> onnxruntime.InferenceSession:
    """Opens a model.

    Args:
        model: A file, or a model in memory.
        threads: Threads inside an operation; operations run one after another.
        literal: Switches all graph optimisation off: Q/DQ operators run as they are written, in float. The reference of
            the numerics; slower than FP32.
        spinning: Lets idle worker threads spin. Faster alone; with several sessions in one process they steal each
            other's time, so it is off by default.
        optimised: Writes the graph that the runtime made of the model there.
        profile: Times every kernel; `end_profiling()` writes a JSON file whose path starts like this.
        provider: Key of `PROVIDERS`; what it cannot compute falls back to the CPU.

    Raises:
        EnvironmentLacksError: onnxruntime is not installed, or this build of it lacks the provider.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentLacksError(
            "onnxruntime is not installed", why=str(error), hint="pip install onnxruntime"
        ) from error
    chosen = _provider(provider, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _WARNINGS_OFF
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if literal else levels.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    source = str(model) if isinstance(model, Path | str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=chosen)


def run(session: onnxruntime.InferenceSession, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs one batch; inputs and outputs by name."""
    names = [output.name for output in session.get_outputs()]
    values = session.run(names, dict(batch))
    return {name: np.asarray(value) for name, value in zip(names, values, strict=True)}


def _provider(name: str, available: Sequence[str]) -> list[str]:
    """The provider and the one it falls back to.

    Raises:
        UserError: There is no such provider.
        EnvironmentLacksError: This build of onnxruntime lacks it.
    """
    if name not in PROVIDERS:
        hint = f"one of: {', '.join(PROVIDERS)}"
        raise UserError(f"there is no provider {name!r}{did_you_mean(name, PROVIDERS)}", hint=hint)
    if PROVIDERS[name] not in available:
        raise EnvironmentLacksError(
            f"onnxruntime has no provider for {name} here",
            why=f"this build has {', '.join(available)}",
            hint="install onnxruntime-gpu, or the provider's own package",
        )
    return list(dict.fromkeys((PROVIDERS[name], PROVIDERS["cpu"])))
