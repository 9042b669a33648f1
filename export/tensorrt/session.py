"""Runs engines behind the interface of an onnxruntime session: gates and measurements need not know which they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import EnvironmentLacksError, UserError
from .device import require_device
from .engine_file import engine_for
from .library import Library
from .log import logger, messages, recording
from .place import CudaPlace, Place

_TYPES: Mapping[str, tuple[torch.dtype, str]] = {
    "FLOAT": (torch.float32, "tensor(float)"),
    "HALF": (torch.float16, "tensor(float16)"),
    "BF16": (torch.bfloat16, "tensor(bfloat16)"),
    "INT8": (torch.int8, "tensor(int8)"),
    "UINT8": (torch.uint8, "tensor(uint8)"),
    "INT32": (torch.int32, "tensor(int32)"),
    "INT64": (torch.int64, "tensor(int64)"),
    "BOOL": (torch.bool, "tensor(bool)"),
}


@dataclass(frozen=True)
class EngineValue:
    """An input or output, as onnxruntime describes one.

    Attributes:
        name: Its name.
        shape: Its sizes; a string is a dynamic axis.
        type: Its element type, such as "tensor(float)".
    """

    name: str
    shape: list[int | str]
    type: str


@dataclass
class _Bound:
    """Inputs on the device, outputs allocated, and the work that leads from one to the other."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    work: Callable[[], None]
    captured: bool


class EngineSession:
    """An engine that is ready to run.

    Args:
        library: What runs it.
        plan: The serialised engine.
        place: Where it runs.
        source: Named in errors.

    Raises:
        EnvironmentLacksError: The library does not load it on this device.
    """

    def __init__(self, library: Library, plan: bytes, place: Place, *, source: str = "") -> None:
        self.library, self.place, self.source = library, place, source
        module = library.module
        with recording(module) as log:
            self._runtime = module.Runtime(logger(module))
            engine = self._runtime.deserialize_cuda_engine(plan)
            context = engine.create_execution_context() if engine is not None else None
            if engine is None or context is None:
                raise EnvironmentLacksError(
                    f"{library.name} {library.version} does not load the engine on this device",
                    where=source,
                    why="; ".join(messages(log, "ERROR")) or "it gave no reason",
                    hint="build it on this machine: secateur engine DIRECTORY",
                )
        self._engine, self._context = engine, context
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        reads = {name for name in names if self._engine.get_tensor_mode(name) == module.TensorIOMode.INPUT}
        self._dtypes = {name: _types(self._engine.get_tensor_dtype(name)) for name in names}
        self._inputs = [self._describe(name) for name in names if name in reads]
        self._outputs = [self._describe(name) for name in names if name not in reads]
        self._held: tuple[Mapping[str, np.ndarray], _Bound] | None = None

    def get_inputs(self) -> list[EngineValue]:
        """Inputs, in the engine's order."""
        return list(self._inputs)

    def get_outputs(self) -> list[EngineValue]:
        """Outputs, in the engine's order."""
        return list(self._outputs)

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Runs one batch.

        Args:
            names: Outputs that are wanted; all if None.
            feeds: Inputs by name.

        Raises:
            UserError: An input is missing, unknown, or beyond the sizes that the engine was built for.
        """
        if self._held is not None and not self._held[1].captured:
            self._held = None  # its buffers are about to lose their place in the context; a graph keeps its own
        bound = self._bind(feeds)
        bound.work()
        wanted = [value.name for value in self._outputs] if names is None else names
        return [self.place.download(bound.outputs[name]).numpy() for name in wanted]

    def milliseconds(self, feeds: Mapping[str, np.ndarray]) -> float:
        """Time that the device takes over one batch whose inputs it holds already, as a CUDA graph where that goes."""
        return self.place.milliseconds(self._prepare(feeds).work)

    def captured(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether `milliseconds` times a CUDA graph."""
        return self._prepare(feeds).captured

    def _prepare(self, feeds: Mapping[str, np.ndarray]) -> _Bound:
        """The bound form of the feeds; the latest is kept, since measurements repeat it."""
        if self._held is None or self._held[0] is not feeds:
            bound = self._bind(feeds)
            bound.work()  # compiles what is compiled late, and must not happen inside a capture
            replay = self.place.capture(bound.work)
            if replay is not None:
                bound = _Bound(bound.inputs, bound.outputs, replay, True)
            self._held = (feeds, bound)
        return self._held[1]

    def _bind(self, feeds: Mapping[str, np.ndarray]) -> _Bound:
        expected = {value.name for value in self._inputs}
        if feeds.keys() != expected:
            raise UserError(
                f"the engine takes the inputs {', '.join(sorted(expected))}",
                where=self.source,
                why=f"it was given {', '.join(sorted(feeds)) or 'none'}",
            )
        inputs = {}
        for name, array in feeds.items():
            tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self._dtypes[name][0])
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise UserError(
                    f"the engine was not built for shape {list(tensor.shape)} of input {name}",
                    where=self.source,
                    hint="build it with a larger profile: secateur engine DIRECTORY --batch MIN,BEST,MAX",
                )
            inputs[name] = self.place.upload(tensor)
        outputs = {}
        for value in self._outputs:
            shape = tuple(self._context.get_tensor_shape(value.name))
            outputs[value.name] = self.place.empty(shape, self._dtypes[value.name][0])
        for name, tensor in {**inputs, **outputs}.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        return _Bound(inputs, outputs, self._execute, False)

    def _execute(self) -> None:
        with recording(self.library.module) as log:
            if not self._context.execute_async_v3(self.place.handle):
                why = "; ".join(messages(log, "ERROR")) or "it gave no reason"
                raise UserError("the engine failed", where=self.source, why=why)

    def _describe(self, name: str) -> EngineValue:
        sizes = tuple(self._engine.get_tensor_shape(name))
        shape: list[int | str] = [
            size if size >= 0 else "batch" if axis == 0 else f"{name}_{axis}" for axis, size in enumerate(sizes)
        ]
        return EngineValue(name, shape, self._dtypes[name][1])


def open_engine(path: Path, *, onnx_file: Path | None = None, index: int = 0) -> EngineSession:
    """Opens an engine file on a CUDA device.

    Args:
        path: The plan, with its key beside it.
        onnx_file: The network that it should compute; an engine of another one is refused.
        index: Number of the device.

    Raises:
        EnvironmentLacksError: There is no device, or the library is not installed.
        UserError: The engine is foreign, stale, or of another library or GPU.
    """
    device = require_device(f"running {path.name}", index)
    found, library = engine_for(path, onnx_file, device)
    return EngineSession(library, found.path.read_bytes(), CudaPlace(index), source=str(path))


def _types(dtype: Any) -> tuple[torch.dtype, str]:
    name = str(dtype).rsplit(".", 1)[-1]
    if name not in _TYPES:
        raise UserError(f"the engine has a tensor of type {name}, which torch does not hold")
    return _TYPES[name]
