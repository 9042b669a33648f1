"""TensorRT and TensorRT-RTX behind one face: every difference between the two, and between versions, is in this file.

TensorRT-RTX 1.x and TensorRT 11 know strongly typed networks only; TensorRT 10 has to be asked for them. RTX builds
for a list of compute capabilities without a device and has no timing cache; TensorRT builds for the device in the
machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ...errors import EnvironmentLacksError, UserError
from .log import logger, recording

OLDEST = {"tensorrt": (10, 12), "tensorrt_rtx": (1, 2)}
"""Oldest version of each package that is known to work."""

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT-RTX builds for; Hopper (9.0) is not among them."""

DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
"""Those of an engine that names none: Turing (7.5) needs a network without FP32 matrix products."""

_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class Library:
    """One of the two packages.

    Attributes:
        name: Import name, `tensorrt` or `tensorrt_rtx`.
        version: Its version.
        module: The imported package.
    """

    name: str
    version: str
    module: Any

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for a list of compute capabilities, without a device."""
        return hasattr(self.module, "ComputeCapability")

    @property
    def has_timing_cache(self) -> bool:
        """Whether measured kernels are remembered between builds; in RTX the calls do nothing."""
        return not self.ahead_of_time

    def create_network(self, builder: Any) -> Any:
        """An empty network that computes in the types its file names."""
        flags = self.module.NetworkDefinitionCreationFlag
        typed = getattr(flags, "STRONGLY_TYPED", None)
        return builder.create_network(0 if typed is None else 1 << int(typed))

    def set_capabilities(self, config: Any, capabilities: tuple[str, ...]) -> None:
        """Makes a build configuration for these compute capabilities, such as "8.6".

        Raises:
            UserError: The library does not know one of them, or builds for its own device only.
        """
        if not self.ahead_of_time:
            raise UserError(
                f"{self.name} builds for the device in this machine",
                where="engine.capabilities",
                why="only TensorRT-RTX builds for a list of compute capabilities",
                hint="leave the capabilities out, or export for the target tensorrt-rtx",
            )
        known = self.module.ComputeCapability
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            value = getattr(known, "SM" + capability.replace(".", ""), None)
            if value is None:
                names = sorted((n for n in dir(known) if re.fullmatch(r"SM\d+", n)), key=lambda name: int(name[2:]))
                raise UserError(
                    f"{self.name} {self.version} does not build for compute capability {capability}",
                    where="engine.capabilities",
                    hint=f"it knows {', '.join(f'{n[2:-1]}.{n[-1]}' for n in names)}",
                )
            if not config.set_compute_capability(value, index):
                raise UserError(f"compute capability {capability} was not accepted", where="engine.capabilities")

    def is_engine(self, plan: bytes) -> bool:
        """Whether the bytes have the form of an engine of this library; True where it cannot tell without a device."""
        with recording(self.module):
            runtime = self.module.Runtime(logger(self.module))
        if not hasattr(runtime, "get_engine_validity"):
            return len(plan) > 0
        with recording(self.module):
            _, diagnostics = runtime.get_engine_validity(plan)
        malformed = self.module.EngineInvalidityDiagnostics.MALFORMED_ENGINE
        return not int(diagnostics) & int(malformed)


def load_library(name: str) -> Library:
    """Imports `tensorrt` or `tensorrt_rtx`.

    Raises:
        EnvironmentLacksError: It is not installed, cannot be loaded, or is too old.
    """
    hint = f"pip install 'secateur[{_EXTRAS[name]}]'"
    try:
        module = import_module(name)
    except (ImportError, OSError) as error:  # a wheel without its shared libraries raises OSError
        raise EnvironmentLacksError(f"{name} cannot be imported", why=str(error), hint=hint) from error
    version = str(module.__version__)
    oldest = OLDEST[name]
    if tuple(int(part) for part in version.split(".")[: len(oldest)]) < oldest:
        text = ".".join(map(str, oldest))
        raise EnvironmentLacksError(f"{name} {version} is too old", why=f"{text} or later is needed", hint=hint)
    return Library(name, version, module)
