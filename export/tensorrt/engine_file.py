"""Engines on disk: the plan as the library wrote it, with its key beside it.

`model.plan` loads in trtexec and Polygraphy unchanged; `model.plan.json` says what it depends on, `model.plan.log` what
the builder said, and `model.plan.layers` what its layers are. An engine without its key, or with another content than
its key names, is refused: loading a plan runs code that it holds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import EnvironmentLacksError, UserError
from ..hashing import hash_file
from .build import BuiltEngine, Progress, build_engine
from .device import Device, find_device
from .key import EngineKey, engine_key, require_fit
from .library import Library, load_library
from .settings import EngineSettings

PLAN_SUFFIX = ".plan"
_FORMAT = 1


@dataclass(frozen=True)
class EngineFile:
    """An engine on disk.

    Attributes:
        path: The plan.
        key: What it depends on.
        facts: Everything that `write_engine` noted: size, sha256, seconds, warnings, precision.
    """

    path: Path
    key: EngineKey
    facts: Mapping[str, Any]


def write_engine(path: Path, built: BuiltEngine) -> dict[str, Any]:
    """Writes an engine, its key, its log and its layers.

    Args:
        path: The plan.
        built: The engine.

    Returns:
        What is noted beside it, for the manifest.
    """
    path.write_bytes(built.plan)
    _log_of(path).write_text(built.log)
    _layers_of(path).write_text(built.layers)
    facts = {
        "format": _FORMAT,
        "file": path.name,
        "sha256": hash_file(path),
        "bytes": len(built.plan),
        "key": built.key.to_json(),
        "digest": built.key.digest,
        "seconds": built.seconds,
        "cpu_seconds": built.cpu_seconds,
        "warnings": list(built.warnings),
        "precision": built.precision.to_json(),
    }
    _key_of(path).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def read_engine(path: Path) -> EngineFile:
    """Reads what is noted beside an engine; the plan itself is only hashed.

    Raises:
        UserError: There is no engine, nothing is noted beside it, or it is another than the one noted.
    """
    hint = "build it here: secateur engine DIRECTORY"
    if not path.is_file():
        raise UserError("there is no engine here", where=str(path), hint=hint)
    beside = _key_of(path)
    try:
        facts = json.loads(beside.read_text())
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']} is not {_FORMAT}")
        key, digest = EngineKey.from_json(facts["key"]), facts["sha256"]
    except FileNotFoundError:
        why = (
            f"{beside.name} is not beside it, so nothing says what it was built from and for; loading a plan runs code"
        )
        raise UserError("the engine is foreign", where=str(path), why=why, hint=hint) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("the key of the engine cannot be read", where=str(beside), why=str(error), hint=hint) from error
    if hash_file(path) != digest:
        why = f"its sha256 is not the one that {beside.name} names"
        raise UserError("the engine was replaced", where=str(path), why=why, hint=hint)
    return EngineFile(path, key, facts)


def engine_for(path: Path, onnx_file: Path | None, device: Device | None) -> tuple[EngineFile, Library]:
    """An engine that may be run, and the library that runs it.

    Args:
        path: The plan.
        onnx_file: The network that it should compute; not compared if None.
        device: The GPU that is to run it; not compared if None.

    Raises:
        UserError: The engine is foreign, stale, or of another library or GPU.
        EnvironmentLacksError: The library is not installed.
    """
    found = read_engine(path)
    library = load_library(found.key.library)
    require_fit(found.key, onnx_file, library, device)
    if not library.is_engine(path.read_bytes()):
        why = f"{library.name} {library.version} does not recognise its form"
        raise UserError("this is not an engine", where=str(path), why=why)
    return found, library


def ensure_engine(
    onnx_file: Path,
    path: Path,
    settings: EngineSettings,
    library: Library,
    *,
    cached: Path | None = None,
    paths: Mapping[str, str] | None = None,
    timing_cache: Path | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bool]:
    """Builds an engine unless the one that exists has the same key.

    Args:
        onnx_file: The network.
        path: Where the engine goes.
        settings: How it is built.
        library: What builds it.
        cached: An engine that may be it; `path` itself if None.
        paths: Module paths by ONNX node name, for messages.
        timing_cache: See `build_engine`.
        progress: See `build_engine`.

    Returns:
        What is noted beside it, and whether it was built now.
    """
    try:
        held = read_engine(cached or path)
        if held.key == engine_key(onnx_file, settings, library, find_device()):
            if held.path != path:
                for source, copy in (
                    (held.path, path),
                    *((f(held.path), f(path)) for f in (_key_of, _log_of, _layers_of)),
                ):
                    shutil.copyfile(source, copy)
            return dict(held.facts), False
    except (UserError, OSError):
        pass  # nothing usable is there
    built = build_engine(onnx_file, settings, library, paths=paths, timing_cache=timing_cache, progress=progress)
    return write_engine(path, built), True


def library_or_reason(name: str) -> tuple[Library | None, str]:
    """The library if engines can be built here, else why they cannot."""
    try:
        library = load_library(name)
    except EnvironmentLacksError as error:
        return None, f"{error.what}: {error.why}"
    if not library.ahead_of_time and find_device() is None:
        return None, f"{name} builds engines on a GPU, and there is none here"
    return library, ""


def _key_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + ".log")


def _layers_of(path: Path) -> Path:
    return path.with_name(path.name + ".layers")
