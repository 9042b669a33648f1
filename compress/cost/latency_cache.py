"""Measured layer times on disk: one JSON file for each device, runtime and number of threads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...export.cpu import cpu_facts
from ...export.layer_times import Timing
from ...export.targets import Target

FORMAT = "secateur-latency/2"
"""1 timed linear layers on tokens in the wrong kernel."""
VARIABLE = "SECATEUR_CACHE"
"""Environment variable that names the cache folder."""


class LatencyCache:
    """Times of layers on one device.

    Args:
        target: Names the runtime and the number grids.
        threads: Threads of the runtime.
        folder: Cache folder; by default that of `VARIABLE`, else the user's.
    """

    def __init__(self, target: Target, threads: int, folder: Path | None = None) -> None:
        self.device = device(target, threads)
        text = json.dumps(self.device, sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.path = (folder or cache_folder()) / "latency" / f"{self.fingerprint}.json"

    def read(self) -> dict[str, Timing]:
        """Times by the key of the layer shape. A file that cannot be understood counts as empty: it is only a cache."""
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT or document["device"] != self.device:
                return {}
            return {
                str(key): Timing(float(micros), float(mad), int(rounds))
                for key, (micros, mad, rounds) in document["layers"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def add(self, times: Mapping[str, Timing]) -> None:
        """Adds times to the file, which is replaced whole or not at all.

        Raises:
            UserError: The folder cannot be written.
        """
        merged = {**self.read(), **times}
        rows = {key: [t.micros, t.mad, t.rounds] for key, t in sorted(merged.items())}
        document = {"format": FORMAT, "device": self.device, "layers": rows}
        partial = self.path.with_name(f"{self.path.name}.{os.getpid()}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(document, indent=0), encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            raise UserError(
                "measured layer times cannot be kept",
                where=str(self.path),
                why=str(error),
                hint=f"set {VARIABLE} to a folder that can be written",
            ) from None


def cache_folder() -> Path:
    """Where secateur keeps what it measured."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateur"


def device(target: Target, threads: int) -> dict[str, Any]:
    """What layer times depend on besides the layer."""
    import onnxruntime

    facts = cpu_facts()
    scheme = target.scheme
    return {
        "cpu": facts["cpu"],
        "instruction_sets": facts["instruction_sets"],
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "threads": threads,
        "grids": f"{scheme.activation.signed} {scheme.weight.signed} {scheme.per_channel} opset {target.opset}",
    }
