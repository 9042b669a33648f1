"""The state of a training on disk: one safetensors file, written atomically after every epoch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_FILE = "training.safetensors"
_MODEL, _OPTIMIZER, _BEST = "model/", "optimizer/", "best/"


@dataclass
class Progress:
    """Where a training is.

    Attributes:
        epoch: Epochs done.
        step: Optimiser steps done.
        best: Best metric so far; None without validation.
        slack: Standard error of `best`.
        chosen: Epoch of the weights to keep; 0 is the start.
        history: One entry per epoch.
    """

    epoch: int = 0
    step: int = 0
    best: float | None = None
    slack: float = 0.0
    chosen: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Copies of parameters and buffers on the CPU."""
    return {name: _portable(tensor) for name, tensor in tensors_of(module).items()}


def restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Writes a snapshot back, in place."""
    with torch.no_grad():
        for name, tensor in tensors_of(module).items():
            tensor.copy_(tensors[name])


def fingerprint(*parts: Any) -> str:
    """Hash of what a training starts from: modules by graph and weights, anything else by its text."""
    digest = hashlib.sha256()
    for part in parts:
        if not isinstance(part, nn.Module):
            digest.update(repr(part).encode())
            continue
        digest.update(str(getattr(part, "code", type(part).__name__)).encode())
        for name, tensor in tensors_of(part).items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_portable(tensor).flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def save_state(
    directory: Path,
    key: str,
    progress: Progress,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: Mapping[str, Tensor],
) -> None:
    """Writes the state; a kill at any moment leaves the old file or the new one, whole."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    tensors = {_MODEL + name: tensor for name, tensor in snapshot(module).items()}
    tensors |= {_BEST + name: tensor for name, tensor in best.items()}
    for parameter, state in optimizer.state.items():
        for item, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{_OPTIMIZER}{names[id(parameter)]}/{item}"] = _portable(value)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"{_FILE}.partial"
    save_file(tensors, partial, metadata={"key": key, "progress": json.dumps(asdict(progress))})
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(directory / _FILE)


def load_state(
    directory: Path, key: str, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, dict[str, Tensor]] | None:
    """Reads the state into module and optimiser.

    Returns:
        Progress and best weights; None if there is no state, or it is of another training.
    """
    path = directory / _FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return None
    restore(module, _below(tensors, _MODEL))
    parameters = dict(module.named_parameters())
    for path_, value in _below(tensors, _OPTIMIZER).items():
        name, _, item = path_.rpartition("/")
        parameter = parameters[name]
        # Moments have device and layout of their parameter; a step count is a scalar on the CPU.
        moment = value.shape == parameter.shape and parameter.ndim > 0
        optimizer.state[parameter][item] = torch.empty_like(parameter).copy_(value) if moment else value
    return Progress(**json.loads(metadata["progress"])), _below(tensors, _BEST)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _portable(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
