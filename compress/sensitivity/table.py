"""Sensitivity: the estimated rise of the loss when a unit is removed, for every unit of every group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


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
        groups: Scores by group name (frozen groups are absent).
        facts: What the numbers were measured on: samples, probes, seed, device, dtype, seconds, versions.
    """

    method: str
    unit: str
    groups: Mapping[str, Scores]
    facts: Mapping[str, object] = field(default_factory=dict)
