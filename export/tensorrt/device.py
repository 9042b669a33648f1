"""The GPU of this machine, as torch and its driver tell."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import EnvironmentLacksError

_CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_throttle_reasons.active")


@dataclass(frozen=True)
class Device:
    """A CUDA device.

    Attributes:
        index: Its number.
        name: Its model.
        capability: Compute capability, such as "8.6".
        memory_bytes: Its memory.
    """

    index: int
    name: str
    capability: str
    memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def find_device(index: int = 0) -> Device | None:
    """The CUDA device of this number, or None."""
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    found = torch.cuda.get_device_properties(index)
    return Device(index, found.name, f"{found.major}.{found.minor}", int(found.total_memory))


def require_device(what: str, index: int = 0) -> Device:
    """The CUDA device, for something that cannot do without.

    Args:
        what: What needs it, as the start of a sentence.
        index: Its number.

    Raises:
        EnvironmentLacksError: There is none, or torch was built without CUDA.
    """
    import torch

    device = find_device(index)
    if device is None:
        built = torch.version.cuda
        why = "torch finds no CUDA device" if built else f"torch {torch.__version__} was built without CUDA"
        raise EnvironmentLacksError(
            f"{what} needs a CUDA device",
            why=why,
            hint="run it on a machine with an NVIDIA GPU and a CUDA build of torch",
        )
    return device


def clocks(index: int = 0) -> dict[str, str]:
    """Clocks, temperature, power and throttling of a GPU right now; empty where `nvidia-smi` is missing or fails."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--id={index}", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_CLOCKS, values, strict=True)) if done.returncode == 0 and len(values) == len(_CLOCKS) else {}
