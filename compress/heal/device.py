"""Where a network runs, and in what precision it trains."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer; the CPU if there is none."""
    tensor = next(module.parameters(), None)
    tensor = next(module.buffers(), None) if tensor is None else tensor
    return torch.device("cpu") if tensor is None else tensor.device


def to_device(value: Any, device: torch.device, *, channels_last: bool = False) -> Any:
    """Copies every tensor in a nest to a device; images go to NHWC order if asked for."""

    def move(tensor: Tensor) -> Tensor:
        tensor = tensor.to(device, non_blocking=True)
        if channels_last and tensor.ndim == 4 and tensor.is_floating_point():
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    return pytree.tree_map_only(Tensor, move, value)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether a training in this precision (`auto`, `fp32`, `bf16`) runs under BF16 autocast on the device."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device.type))


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[Any]:
    """BF16 autocast: convolutions and products in BF16, weights and statistics in float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


@cache
def has_bf16(device_type: str) -> bool:
    """Whether a device has BF16 arithmetic of its own; where it has not, BF16 is emulated and slower than float32."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        # macOS: every ARM processor since 2022, but PyTorch has no BF16 convolutions there that beat float32.
        return False
    flags = set(info.read_text().split())
    wanted = {"bf16"} if platform.machine() == "aarch64" else {"avx512_bf16", "amx_bf16"}
    return bool(flags & wanted)
