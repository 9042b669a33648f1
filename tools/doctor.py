"""`secateur doctor`: what this machine has, and what each target lacks on it."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from rich.table import Table

from ..errors import EnvironmentLacksError, UserError, did_you_mean
from ..export.latency import cpu_facts
from ..export.targets import TARGETS, Target, lacking_instructions
from .console import stdout_console

_PACKAGES = (
    "secateur",
    "torch",
    "numpy",
    "scipy",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "safetensors",
    "pydantic",
    "tensorrt",
    "tensorrt-rtx",
)


def doctor(target: str | None, *, as_json: bool) -> int:
    """Prints the examination.

    Args:
        target: If given, the exit code says whether it can be used here.
        as_json: Print JSON.

    Raises:
        EnvironmentLacksError: `target` lacks something.
        UserError: There is no such target.
    """
    if target is not None and target not in TARGETS:
        raise UserError(f"there is no target {target!r}{did_you_mean(target, list(TARGETS))}", hint=", ".join(TARGETS))
    found = examination()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        _show(found)
    if target is not None and (lacks := found["targets"][target]):
        raise EnvironmentLacksError(f"target {target} cannot be used here", why="; ".join(lacks))
    return 0


def examination() -> dict[str, Any]:
    """Versions, processor, devices, and by target what it lacks."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": cpu_facts(),
        "devices": {"cuda": _cuda_devices()},
        "targets": {name: lacks(target) for name, target in TARGETS.items()},
    }


def lacks(target: Target) -> list[str]:
    """What has to be installed or present before `target` works well here."""
    missing = []
    if find_spec(target.runtime) is None:
        missing.append(f"the package {target.runtime} is not installed: pip install {target.runtime}")
    if lack := lacking_instructions(target, cpu_facts()["instruction_sets"]):
        missing.append(lack)
    if target.device == "cuda" and not _cuda_devices():
        missing.append("there is no CUDA device: what is built here is not run here")
    return missing


def _cuda_devices() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _show(found: dict[str, Any]) -> None:
    console = stdout_console()
    table = Table("what", "here", box=None, header_style="bold", pad_edge=False)
    table.add_row("python", found["python"])
    for name, number in found["packages"].items():
        table.add_row(name, number)
    cpu = found["cpu"]
    table.add_row("processor", str(cpu["cpu"]))
    table.add_row("cores", str(cpu["cores"]))
    table.add_row("instruction sets", " ".join(cpu["instruction_sets"]) or "none of those that matter")
    table.add_row("GPU", ", ".join(found["devices"]["cuda"]) or "none")
    for name, missing in found["targets"].items():
        table.add_row(f"target {name}", "; ".join(missing) or "ready")
    console.print(table)
