"""Scaling for half precision: derivatives are computed of a multiple, and divided by it in single precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError

RETRIES = 24
"""Halvings before giving up: the range of normal FP16 numbers is 2^-14 to 2^16."""


@dataclass(frozen=True)
class Scaled:
    """What came out finite.

    Attributes:
        values: Computed at `scale`, and still multiplied by it.
        scale: The largest scale tried at which all of them are finite.
        retried: How many larger ones were tried before.
    """

    values: Sequence[Tensor | None]
    scale: float
    retried: int

    def unscaled(self, other: float = 1.0) -> list[Tensor]:
        """The values without `scale`, nor a second scale that went into them, divided in FP32 or better."""
        divisor = self.scale * other
        return [(v if v.dtype == torch.float64 else v.float()) / divisor for v in self.values if v is not None]


def finite_at(compute: Callable[[float], Sequence[Tensor | None]], scale: float, retries: int = RETRIES) -> Scaled:
    """Computes at a scale, and at half of it and so on until everything is finite.

    Args:
        compute: From a scale to values that are proportional to it, but for overflow.
        scale: The first to try; a power of two, so that scaling itself is exact.
        retries: Halvings at most.

    Raises:
        UserError: Not even the smallest scale gives finite values.
    """
    for retried in range(retries + 1):
        values = compute(scale)
        if all(v is None or bool(torch.isfinite(v).all()) for v in values):
            return Scaled(values, scale, retried)
        scale /= 2
    raise UserError(
        "a derivative of the loss overflows in half precision",
        where="rank",
        why=f"NaN or infinity at every scale down to {2 * scale:g}",
        hint="rank by method hap, in full precision",
    )
