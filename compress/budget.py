"""Budgets: what the result must not exceed, as people say it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import UserError, did_you_mean

COUNT_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
"""Multiples of a count, in lower case: 300k parameters, 20M multiply-accumulates."""

TIME_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
"""Seconds of each unit."""

SIZE_UNITS = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
"""Bytes of each unit, in lower case."""

UNITS = {
    "params": COUNT_UNITS,
    "macs": COUNT_UNITS,
    "latency": TIME_UNITS,
    "size": SIZE_UNITS,
    "memory": SIZE_UNITS,
}
EXAMPLES = {
    "params": ("40%", "300k"),
    "macs": ("50%", "20M"),
    "latency": ("60%", "2ms"),
    "size": ("30%", "400kB"),
    "memory": ("15%", "64kB"),
}
_AMOUNT = re.compile(r"(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([a-zµ%]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Amount:
    """An upper limit.

    Attributes:
        value: Count, seconds or bytes; or a share of the dense model (0.5 for 50%).
        relative: It is a share.
    """

    value: float
    relative: bool

    def of(self, dense: float) -> float:
        """The limit for a dense model that has `dense` of it."""
        return self.value * dense if self.relative else self.value


def parse_amount(text: object, units: Mapping[str, float], examples: tuple[str, str]) -> Amount:
    """Reads `50%`, `2.5M`, `2ms` or `400kB`.

    Raises:
        ValueError: No unit, an unknown one, or a number that is not positive and finite.
    """
    relative, absolute = examples
    match = _AMOUNT.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match:
        if isinstance(text, int | float) and not isinstance(text, bool):
            raise ValueError(f"{text} is a budget without a unit; write {relative} or {absolute}")
        raise ValueError(f"{text!r} is no amount; write {relative} or {absolute}")
    number, unit = float(match[1]), match[2].lower()
    if not unit:
        raise ValueError(f"{text} is a budget without a unit; write {relative} or {absolute}")
    if unit != "%" and unit not in units:
        raise ValueError(f"unknown unit {match[2]!r}; there is: %, {', '.join(units)}")
    value = number / 100 if unit == "%" else number * units[unit]
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{text} is {'not positive' if value <= 0 else 'too large'}; write {relative} or {absolute}")
    return Amount(value, unit == "%")


class Budget(BaseModel):
    """What the result must not exceed. Per cent are of the dense FP32 model; absolute values carry a unit.

    Attributes:
        params: Parameters: "40%", "300k".
        macs: Multiply-accumulates of convolutions and linear layers, for one sample: "50%", "20M".
        latency: Time of one run: "60%" at every batch size of the latency gate, "2ms" at the first. Planned for on
            measured times of layers, and gated.
        size: File of the artifact: "30%", "400kB". Planned for and gated.
        memory: Values alive at once while one sample runs, a byte each on integer grids: "15%", "64kB".
        accuracy_drop: Points of the metric below the dense model. Gated.

    Raises:
        UserError: An unknown name, or an amount without unit or out of range.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    params: str | None = None
    macs: str | None = None
    latency: str | None = None
    size: str | None = None
    memory: str | None = None
    accuracy_drop: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)

    def __init__(self, **amounts: Any) -> None:
        try:
            super().__init__(**amounts)
        except ValidationError as error:
            raise _budget_error(error) from None

    # Inside a recipe pydantic validates fields itself, so that all errors of the recipe are told together.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @field_validator("params", "macs", "latency", "size", "memory", mode="before")
    @classmethod
    def _has_unit(cls, value: object, info: Any) -> object:
        if value is not None:
            parse_amount(value, UNITS[info.field_name], EXAMPLES[info.field_name])
        return value

    def amount(self, name: str) -> Amount | None:
        """The limit on `params`, `macs`, `latency`, `size` or `memory`, if there is one."""
        text = getattr(self, name)
        return None if text is None else parse_amount(text, UNITS[name], EXAMPLES[name])

    def given(self) -> dict[str, Any]:
        """The budgets that were given, by name, as they were written."""
        return self.model_dump(exclude_none=True)


def _budget_error(error: ValidationError) -> UserError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = list(Budget.model_fields)
        return UserError(
            f"unknown budget {key!r}{did_you_mean(key, known)}", where="Budget", hint=f"there is: {', '.join(known)}"
        )
    message = first["msg"].removeprefix("Value error, ")
    relative, absolute = EXAMPLES.get(key, ("", ""))
    hint = f"{key}={relative!r}, or {absolute!r}; on the command line --max-{key} {relative}" if relative else ""
    return UserError(f"the budget on {key} cannot be used", where=f"Budget({key}=…)", why=message, hint=hint)
