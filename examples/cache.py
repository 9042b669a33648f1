"""Where trained example weights are kept between runs."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def cache_directory() -> Path:
    """`SECATEUR_CACHE` if it is set, else the folder that the system gives to caches of this user."""
    if chosen := os.environ.get("SECATEUR_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "secateur"


def cached_weights(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights that the cache holds under `name`, or those that `make` returns, which are then kept.

    A cache that cannot be read or written costs time, not correctness: it is reported on stderr and done without.

    Args:
        name: Must change whenever `make` would return something else.
        make: Makes the weights.
    """
    path = cache_directory() / f"{name}.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            _warn(f"the cached weights cannot be read and are made again ({path}: {error})")
    weights = make()
    try:
        _write(weights, path)
    except (SafetensorError, OSError) as error:
        _warn(f"the weights cannot be cached and will be made again next time ({path}: {error})")
    return weights


def _write(weights: dict[str, Tensor], path: Path) -> None:
    """Writes the file whole or not at all, also when two processes do so at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        part = Path(scratch) / path.name
        save_file(weights, part)
        part.replace(path)


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)
