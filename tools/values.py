"""Reads `KEY=VALUE` from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ..errors import UserError


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """Values by dotted key; a value is read as YAML, so `3`, `true`, `[1, 32]` and `50%` are what they look like.

    Raises:
        UserError: A pair has no `=`, or its value is not YAML.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise UserError(f"{pair!r} is not KEY=VALUE", where="--set or --option", hint="for instance heal.epochs=3")
        try:
            values[key] = YAML(typ="safe", pure=True).load(text)
        except RecursionError:
            raise UserError(f"the value of {key} is nested too deeply", where="--set") from None
        except YAMLError as error:
            raise UserError(f"the value of {key} is not YAML", where="--set", why=str(error).splitlines()[0]) from None
    return values
