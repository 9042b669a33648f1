"""Sensitivity: the estimated rise of the loss when a unit is removed, for every unit of every group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ...errors import UserError

_FORMAT = "secateur-sensitivity/1"


@dataclass(frozen=True)
class Scores:
    """Scores of the units of one group.

    Attributes:
        delta_loss: float64 [width]: estimated rise of the mean loss if this unit alone is removed. Methods that rank
            but do not estimate a loss (magnitude, random) put their score here and say so in `Sensitivity.unit`.
        std_error: float64 [width]: standard error of the estimate; zero for deterministic methods.
    """

    delta_loss: np.ndarray
    std_error: np.ndarray


@dataclass(frozen=True)
class Sensitivity:
    """Result of `rank`.

    Attributes:
        method: Name of the estimator.
        unit: What `delta_loss` is measured in: "loss" or "score".
        groups: Scores by group name (frozen groups, and groups that nothing produces, are absent).
        facts: What the numbers were measured on: samples, probes, seed, device, dtype, seconds, versions. JSON values.
        interactions: float64 [units, units], units of all groups in order, or None if the method gives none: the rise
            of the loss if a set S of units is removed is estimated by the sum of the entries of S x S. Symmetric; its
            diagonal is `delta_loss`.
    """

    method: str
    unit: str
    groups: Mapping[str, Scores]
    facts: Mapping[str, object] = field(default_factory=dict)
    interactions: np.ndarray | None = None

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file: float64 arrays, two a group and the interactions, and JSON in its metadata.

        Raises:
            UserError: The file cannot be written.
        """
        path = Path(path)
        header = {
            "format": _FORMAT,
            "method": self.method,
            "unit": self.unit,
            "groups": list(self.groups),
            "facts": dict(self.facts),
        }
        arrays = {}
        for name, scores in self.groups.items():
            arrays[f"{name}:delta_loss"] = np.ascontiguousarray(scores.delta_loss, dtype=np.float64)
            arrays[f"{name}:std_error"] = np.ascontiguousarray(scores.std_error, dtype=np.float64)
        if self.interactions is not None:
            arrays["interactions"] = np.ascontiguousarray(self.interactions, dtype=np.float64)
        partial = path.with_name(path.name + ".partial")
        try:
            partial.write_bytes(save(arrays, metadata={"sensitivity": json.dumps(header)}))
            partial.replace(path)
        except OSError as error:
            raise UserError("the sensitivities cannot be written", where=str(path), why=str(error)) from None

    @staticmethod
    def load(path: str | Path) -> Sensitivity:
        """Reads what `save` wrote, bit for bit.

        Raises:
            UserError: There is no file, or it is not a table of sensitivities.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(
                "there are no sensitivities here", where=str(path), hint="run rank first, or check the path"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                header = _header(file.metadata())
                groups = {name: _scores(file, name) for name in header["groups"]}
                matrix = _interactions(file, groups) if "interactions" in file.keys() else None  # noqa: SIM118
                return Sensitivity(header["method"], header["unit"], groups, header["facts"], matrix)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                "this is not a table of sensitivities",
                where=str(path),
                why=str(error) or type(error).__name__,
                hint="write it again with rank; it is a safetensors file of secateur's own",
            ) from None


def _header(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    header = json.loads((metadata or {}).get("sensitivity", "{}"))
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"its metadata does not say {_FORMAT}")
    return header


def _scores(file: Any, name: str) -> Scores:
    delta_loss, std_error = (file.get_tensor(f"{name}:{part}") for part in ("delta_loss", "std_error"))
    if delta_loss.ndim != 1 or delta_loss.shape != std_error.shape or delta_loss.dtype != np.float64:
        raise ValueError(f"the arrays of group {name} are not float64 vectors of one length")
    if not (np.isfinite(delta_loss).all() and np.isfinite(std_error).all()):
        raise ValueError(f"group {name} holds NaN or infinity")
    return Scores(delta_loss, std_error)


def _interactions(file: Any, groups: Mapping[str, Scores]) -> np.ndarray:
    matrix = file.get_tensor("interactions")
    units = sum(len(scores.delta_loss) for scores in groups.values())
    if matrix.shape != (units, units) or matrix.dtype != np.float64 or not np.isfinite(matrix).all():
        raise ValueError(f"the interactions are not a finite float64 matrix [{units}, {units}]")
    return matrix
