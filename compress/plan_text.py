"""The YAML forms of the values in a plan, and the errors where one is something else."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ..errors import UserError, did_you_mean

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


def estimate(value: float, error: float) -> str:
    """A value and its standard error, as in `3.1e-03 ± 4e-04`."""
    return f"{number(value)} ± {number(error)}"


def number(value: float) -> str:
    """The shortest of the exact forms of a number."""
    exact = (f"{value:.{digits}e}" for digits in range(17))
    return min((next(t for t in exact if float(t) == value), repr(value)), key=len)


def read_estimate(text: Any, where: str) -> tuple[float, float]:
    """The inverse of `estimate`; without an error it is 0."""
    parts = [part.strip() for part in re.split("±|\\+-|\\+/-", str(text))]
    try:
        value, error = (float(part) for part in (*parts, "0")[:2])
    except ValueError:
        value = error = math.nan
    if len(parts) > 2 or not (math.isfinite(value) and math.isfinite(error) and error >= 0):
        raise UserError(f"delta_loss: {text} is no estimate", where=where, hint="delta_loss: 3.1e-03 ± 4e-04")
    return value, error


def integer(value: Any, key: str, where: str) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{key}: {value} is no whole number", where=where)
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A mapping with its keys."""
    if not isinstance(value, dict):
        raise UserError(
            "there should be keys with values here", where=where, why=f"there is {json.dumps(value, default=str)}"
        )
    return value


def get_key(raw: Mapping[str, Any], key: str, where: str) -> Any:
    """The value of a key that must be there."""
    if key not in raw:
        raise UserError(
            f"the key {key} is missing", where=where, hint="take it back from the plan as secateur wrote it"
        )
    return raw[key]


def no_unknown(raw: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    """Refuses keys that nobody reads."""
    for key in raw:
        if key not in known:
            raise UserError(
                f"unknown key {key}{did_you_mean(str(key), known)}", where=where, hint=f"there is: {', '.join(known)}"
            )


def parse(text: str, where: str) -> Any:
    """The value of a YAML text."""
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        at = f"{where}:{error.problem_mark.line + 1}" if error.problem_mark else where
        raise UserError("the plan is not valid YAML", where=at, why=str(error.problem), hint="mend this line") from None
    except YAMLError as error:
        raise UserError("the plan is not valid YAML", where=where, why=str(error).splitlines()[0]) from None


def flow(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and value.lower() not in _WORDS
        return value if plain else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return number(value)
    return json.dumps(value)


def percent(part: int, whole: int) -> str:
    """A share of a whole, in per cent."""
    return f"{100 * part / whole:.1f}%" if whole else "0%"
