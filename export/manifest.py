"""The manifest of an artifact: what is in it, what it was made with, and what the runtime makes of it.

Everything but `created` and `environment` follows from the program, the target and the versions of the packages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx

from ..errors import UserError
from .cpu import cpu_facts
from .hashing import hash_file
from .lower import Lowered
from .ort_kernels import KernelReport
from .targets import Target

FORMAT = 1
"""Version of the manifest's form."""
MANIFEST_NAME = "manifest.json"
_PACKAGES = ("secateur", "torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx")


def build_manifest(
    directory: Path,
    *,
    target: Target,
    lowered: Lowered,
    kernels: KernelReport,
    history: Sequence[str],
    facts: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describes the files below a directory.

    Args:
        directory: Where every file of the artifact but the manifest lies.
        target: What it was lowered for.
        lowered: The lowered model.
        kernels: What the runtime makes of it.
        history: Passes that made the program.
        facts: Further facts from the caller (parameters, MACs, accuracy); plain data.
        extra: Keys that only this target has; plain data.
    """
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": {"versions": {name: _version(name) for name in _PACKAGES}, **cpu_facts()},
        "target": target.name,
        "target_profile": asdict(target),
        "history": list(history),
        "inputs": [describe_value(value) for value in lowered.model.graph.input],
        "outputs": [describe_value(value) for value in lowered.model.graph.output],
        "ir_version": lowered.model.ir_version,
        "fallbacks": [asdict(fallback) for fallback in lowered.fallbacks],
        "rewrites": list(lowered.rewrites),
        "kernels": kernels.to_json(),
        "half": list(lowered.half),
        **(extra or {}),
        "facts": dict(facts),
        "files": describe_files(directory),
    }


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below a directory, the manifest left out."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST_NAME)
    return {
        path.relative_to(directory).as_posix(): {"sha256": hash_file(path), "bytes": path.stat().st_size}
        for path in paths
    }


def describe_value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    """Name, shape (a string is a dynamic axis) and element type of a graph input or output."""
    tensor = value.type.tensor_type
    shape = [d.dim_param if d.HasField("dim_param") else d.dim_value for d in tensor.shape.dim]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return {"name": value.name, "shape": shape, "dtype": dtype}


def write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Writes `manifest.json`.

    Raises:
        UserError: The caller's facts are not plain data.
    """
    try:
        text = json.dumps(manifest, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            "the facts for the manifest are not plain data",
            where="facts",
            why=str(error),
            hint="pass numbers and strings",
        ) from error
    (directory / MANIFEST_NAME).write_text(text + "\n")


def read_manifest(directory: Path) -> dict[str, Any]:
    """Reads `manifest.json`.

    Raises:
        UserError: There is none, it cannot be read, or it is of another format or a later version.
    """
    path = directory / MANIFEST_NAME
    hint = "name a directory that `secateur export` wrote"
    if not path.is_file():
        raise UserError("this is not an artifact", where=str(directory), why=f"it holds no {MANIFEST_NAME}", hint=hint)
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError("the manifest cannot be read", where=str(path), why=str(error), hint="export again") from error
    if not isinstance(manifest, dict) or "format" not in manifest or not isinstance(manifest.get("files"), dict):
        raise UserError("this is not an artifact's manifest", where=str(path), hint=hint)
    if manifest["format"] != FORMAT:
        raise UserError(
            f"the artifact has format {manifest['format']}, not {FORMAT}",
            where=str(path),
            hint="export again with this version of secateur",
        )
    return manifest


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
