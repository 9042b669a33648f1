"""What an engine depends on. An engine is a cache of its ONNX file: valid for one key, built again for any other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..hashing import hash_file
from .device import Device
from .library import DEFAULT_CAPABILITIES, Library
from .settings import EngineSettings


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built from and for.

    Attributes:
        onnx_sha256: Content of the ONNX file.
        library: `tensorrt` or `tensorrt_rtx`.
        version: Version of the library.
        capabilities: Compute capabilities that it runs on.
        device: Name of the GPU that it was tuned on; empty if it was built without one.
        flags: Every setting that changes the engine.
    """

    onnx_sha256: str
    library: str
    version: str
    capabilities: tuple[str, ...]
    device: str
    flags: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 of the key, in hexadecimal: the name of an engine in a cache."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "capabilities": list(self.capabilities)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> EngineKey:
        """Reads what `to_json` wrote.

        Raises:
            KeyError, TypeError: It is something else.
        """
        return EngineKey(**{**data, "capabilities": tuple(data["capabilities"])})


def engine_key(onnx_file: Path, settings: EngineSettings, library: Library, device: Device | None) -> EngineKey:
    """The key of the engine that `build_engine` would build.

    Args:
        onnx_file: The network.
        settings: How it is built.
        library: What builds it.
        device: The GPU of this machine; matters to a library that builds for it.
    """
    flags = settings.model_dump(mode="json", exclude={"capabilities"})
    if library.ahead_of_time:
        capabilities, name = settings.capabilities or DEFAULT_CAPABILITIES, ""
    else:
        capabilities, name = (device.capability,) if device else (), device.name if device else ""
    return EngineKey(hash_file(onnx_file), library.name, library.version, capabilities, name, flags)


def require_fit(key: EngineKey, onnx_file: Path | None, library: Library, device: Device | None) -> None:
    """Refuses an engine that belongs to another network, library or GPU.

    Args:
        key: Of the engine.
        onnx_file: The network that it should compute; not compared if None.
        library: The library that would run it.
        device: The GPU that would run it; not compared if None.

    Raises:
        UserError: It does not fit; says what differs.
    """
    hint = "build it again: secateur engine DIRECTORY"
    if onnx_file is not None and hash_file(onnx_file) != key.onnx_sha256:
        raise UserError(
            "the engine is stale",
            where=str(onnx_file),
            why=f"it was built from another ONNX file (sha256 {key.onnx_sha256[:12]}…)",
            hint=hint,
        )
    if (key.library, key.version) != (library.name, library.version):
        raise UserError(
            "the engine belongs to another library",
            where=f"built by {key.library} {key.version}",
            why=f"here is {library.name} {library.version}; engines are not portable between versions",
            hint=hint,
        )
    if device is not None and device.capability not in key.capabilities:
        raise UserError(
            "the engine does not run on this GPU",
            where=f"{device.name}, compute capability {device.capability}",
            why=f"it was built for {', '.join(key.capabilities) or 'no capability'}",
            hint=hint,
        )
    if device is not None and key.device and key.device != device.name:
        raise UserError(
            "the engine was tuned on another GPU",
            where=device.name,
            why=f"it was built on {key.device}: its kernels are not the fastest here, and may not run",
            hint=hint,
        )
