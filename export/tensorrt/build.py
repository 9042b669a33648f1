"""Builds engines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ...errors import EnvironmentLacksError, UnsupportedError, UserError
from .device import find_device
from .key import EngineKey, engine_key
from .layers import PrecisionReport, layers_of_inspector, layers_of_log, precision_report
from .legality import require_legal
from .library import Library
from .log import Line, as_text, logger, messages, recording
from .settings import EngineSettings, Profile

Progress = Callable[..., None]
"""Called as `progress(done, total, phase=name)`."""

_MIB = 2**20


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine and how it came to be.

    Attributes:
        plan: The engine, as the library, trtexec and Polygraphy read it.
        key: What it depends on.
        seconds: Time of the build, verifier and parser included.
        cpu_seconds: Time that the processor spent on it, in all threads: what counts on a machine with other work.
        log: What the library said.
        warnings: Its warnings, once each.
        precision: Which layers are integer.
        layers: Every layer: what the engine inspector says (JSON), or the builder's own list where it cannot be asked.
    """

    plan: bytes
    key: EngineKey
    seconds: float
    cpu_seconds: float
    log: str
    warnings: tuple[str, ...]
    precision: PrecisionReport
    layers: str


def build_engine(
    onnx_file: Path,
    settings: EngineSettings,
    library: Library,
    *,
    paths: Mapping[str, str] | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> BuiltEngine:
    """Builds the engine of an ONNX file.

    Args:
        onnx_file: The network, in TensorRT's dialect of Q/DQ, or without any.
        settings: How to build it.
        library: What builds it.
        paths: Module paths by ONNX node name, for messages.
        timing_cache: File of measured kernels; read, and written again. Does nothing for a library that has none.
        progress: Called while the builder works; an exception that it raises (an interrupt) cancels the build.

    Raises:
        UnsupportedError: The network is not legal, or the library cannot build it.
        UserError: The settings do not fit the network.
        EnvironmentLacksError: The library builds on a GPU, and there is none.
    """
    started, cpu_started = time.monotonic(), time.process_time()
    device = find_device()
    if device is None and not library.ahead_of_time:
        raise EnvironmentLacksError(
            f"{library.name} builds engines on a GPU, and there is none",
            hint="build on the machine that will run it, or use the target tensorrt-rtx",
        )
    key = engine_key(onnx_file, settings, library, device)
    model = onnx.load(str(onnx_file))
    # What a GPU lacks is a matter of the list of kernels that are compiled ahead of time.
    capabilities = key.capabilities if library.ahead_of_time else ()
    require_legal(model, capabilities=capabilities, sparse=settings.sparse, paths=paths)
    monitor = _monitor(library.module, progress)
    with recording(library.module) as log:
        builder = library.module.Builder(logger(library.module))
        network = library.create_network(builder)
        _parse(onnx_file, network, library, log, paths or {})
        config = _configure(builder, network, settings, library, key)
        cache = _read_timing_cache(config, library, timing_cache)
        config.progress_monitor = monitor
        built = builder.build_serialized_network(network, config)
        if monitor.error is not None:
            raise monitor.error
        if built is None:
            raise _build_error(onnx_file, library, log, paths or {})
        plan = bytes(built)
        if cache is not None and timing_cache is not None:
            timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
        precision, layers = _precision(model, plan, library, log, has_device=device is not None)
    seconds = round(time.monotonic() - started, 3)
    cpu_seconds = round(time.process_time() - cpu_started, 3)
    warnings = tuple(messages(log, "WARNING"))
    return BuiltEngine(plan, key, seconds, cpu_seconds, as_text(log), warnings, precision, layers)


def _parse(onnx_file: Path, network: Any, library: Library, log: Sequence[Line], paths: Mapping[str, str]) -> None:
    """Fills the network.

    Raises:
        UnsupportedError: The parser rejects the file; every error is told, with its node.
    """
    parser = library.module.OnnxParser(network, logger(library.module))
    # By path, so that weights in files beside it are found.
    accepted = parser.parse_from_file(str(onnx_file))
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    if accepted and network.num_outputs > 0:
        return
    first = errors[0] if errors else None
    name = first.node_name() if first is not None else ""
    raise UnsupportedError(
        f"the parser of {library.name} {library.version} rejects the network",
        where=", ".join(part for part in (str(onnx_file), name and f"node {name}", paths.get(name, "")) if part),
        why="; ".join(str(error.desc()) for error in errors) or "the file holds no network",
        hint="this is a graph that our own verifier calls legal: please report it",
    )


def _configure(builder: Any, network: Any, settings: EngineSettings, library: Library, key: EngineKey) -> Any:
    module = library.module
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    for flag, wanted in (
        (module.BuilderFlag.TF32, settings.tf32),
        (module.BuilderFlag.SPARSE_WEIGHTS, settings.sparse),
    ):
        config.set_flag(flag) if wanted else config.clear_flag(flag)
    if settings.workspace_mib is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if library.ahead_of_time or settings.capabilities is not None:
        library.set_capabilities(config, settings.capabilities or key.capabilities)
    _add_profile(builder, network, config, settings)
    return config


def _add_profile(builder: Any, network: Any, config: Any, settings: EngineSettings) -> None:
    """Gives the builder the sizes of inputs with dynamic axes.

    Raises:
        UserError: An input has a dynamic axis besides the batch and no profile, or a profile names no input.
    """
    inputs = {network.get_input(i).name: tuple(network.get_input(i).shape) for i in range(network.num_inputs)}
    unknown = sorted(settings.profiles.keys() - inputs.keys())
    if unknown:
        raise UserError(
            f"there is no input {unknown[0]!r}", where="engine.profiles", hint=f"inputs: {', '.join(inputs)}"
        )
    profile = builder.create_optimization_profile()
    dynamic = False
    for name, shape in inputs.items():
        if -1 not in shape:
            continue
        sizes = _sizes(name, shape, settings)
        profile.set_shape(name, sizes.min, sizes.best, sizes.max)
        dynamic = True
    if dynamic:
        config.add_optimization_profile(profile)


def _sizes(name: str, shape: tuple[int, ...], settings: EngineSettings) -> Profile:
    given = settings.profiles.get(name)
    if given is not None:
        fits = all(_fits(sizes, shape) for sizes in (given.min, given.best, given.max))
        if not fits:
            raise UserError(
                f"the profile of input {name} does not fit its shape {list(shape)}", where="engine.profiles"
            )
        return given
    if -1 in shape[1:]:
        raise UserError(
            f"axis {shape.index(-1, 1)} of input {name} is dynamic",
            where="engine.profiles",
            why="an engine needs the smallest, the best and the largest size of every dynamic axis",
            hint=f"engine: {{profiles: {{{name}: {{min: […], best: […], max: […]}}}}}}",
        )
    least, best, most = ((batch, *shape[1:]) for batch in settings.batch)
    return Profile(min=least, best=best, max=most)


def _fits(sizes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether sizes are possible for a shape whose dynamic axes are -1."""
    return len(sizes) == len(shape) and all(axis in (-1, size) for size, axis in zip(sizes, shape, strict=True))


def _read_timing_cache(config: Any, library: Library, path: Path | None) -> Any:
    """Gives the configuration the kernels that were measured before; None for a library without a timing cache."""
    if not library.has_timing_cache:
        return None
    held = path.read_bytes() if path is not None and path.is_file() else b""
    cache = config.create_timing_cache(held)
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        # Of another GPU or version: start afresh, as if there were none.
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _monitor(module: Any, progress: Progress | None) -> Any:
    """The library's progress as calls of `progress`; an exception in it cancels the build and is kept in `error`."""

    class _Monitor(module.IProgressMonitor):
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.error: BaseException | None = None
            self.totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.totals[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.totals.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if progress is not None and self.error is None:
                    progress(step + 1, self.totals.get(phase_name, step + 1), phase=phase_name)
            except BaseException as error:  # must not pass through the library's own code
                self.error = error
            return self.error is None

    return _Monitor()


def _build_error(onnx_file: Path, library: Library, log: Sequence[Line], paths: Mapping[str, str]) -> UnsupportedError:
    errors = messages(log, "ERROR")
    text = "; ".join(errors)
    # Messages quote the node that they are about.
    named = max((name for name in paths if f"'{name}'" in text or f" {name}_U" in text), key=len, default="")
    return UnsupportedError(
        f"{library.name} {library.version} cannot build the engine",
        where=", ".join(part for part in (str(onnx_file), named and f"node {named}", paths.get(named, "")) if part),
        why=text or "the builder gave no reason",
    )


def _precision(
    model: onnx.ModelProto, plan: bytes, library: Library, log: Sequence[Line], *, has_device: bool
) -> tuple[PrecisionReport, str]:
    """From the inspector if the engine can be loaded here, else from the build log; and what that says, whole."""
    module = library.module
    if has_device:
        engine = module.Runtime(logger(module)).deserialize_cuda_engine(plan)
        if engine is not None:
            text = engine.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
            return precision_report(model, layers_of_inspector(text), "inspector"), text
    listed = next((text for severity, text in log if severity == "VERBOSE" and text.startswith("Layers:")), "")
    return precision_report(model, layers_of_log(listed), "build log"), listed
