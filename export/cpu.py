"""The processor that numbers were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx_vnni_int8",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
"""Instruction sets that decide how fast kernels are, as the kernel names them."""

_CPUINFO = Path("/proc/cpuinfo")


def cpu_facts(cpuinfo: Path = _CPUINFO) -> dict[str, Any]:
    """Model, cores and instruction sets of this machine's processor.

    Args:
        cpuinfo: Where the operating system describes it; only Linux has such a file.

    Returns:
        `cpu` (model name), `cores` (logical cores this process may use), `instruction_sets` (known ones that it has).
    """
    fields: dict[str, str] = {}
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "cores": cores,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in flags],
    }
