"""Which operations a program may call, and their names in a saved graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload

_OPERATORS = [
    "getitem",
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "neg",
    "pos",
    "abs",
    "and_",
    "or_",
    "xor",
    "not_",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "lshift",
    "rshift",
]
_SYMBOLIC = ["sym_float", "sym_int", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum", "sym_sqrt"]
_FORBIDDEN = frozenset({"from_file"})
"""ATen operations that touch the file system."""

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"torch.{name}": getattr(torch, name) for name in _SYMBOLIC if hasattr(torch, name)},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
"""Python functions that may be called, by name in a saved graph."""

_NAMES = {function: name for name, function in FUNCTIONS.items()}
_ALLOWED: set[str] = set()
"""Operations outside of ATen that users registered: "library.name"."""


def allow(name: str) -> None:
    """Lets programs call an operation that is none of ATen's; code of the user's process decides, never a file."""
    _ALLOWED.add(name)


def name_of(target: Any) -> str | None:
    """Name of a call target in a saved graph, or None if a program may not call it."""
    if isinstance(target, OpOverload):
        known = _may_call(target.namespace, target._opname)
        return f"{target.namespace}.{target._opname}.{target._overloadname}" if known else None
    return _NAMES.get(target)


def target_of(name: str) -> Callable[..., Any] | None:
    """The call target of a name in a saved graph, or None if there is none that a program may call."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    namespace, *rest = name.split(".")
    if len(rest) != 2 or not all(part.isidentifier() for part in rest) or not _may_call(namespace, rest[0]):
        return None
    packet = getattr(getattr(torch.ops, namespace), rest[0], None)
    overload = getattr(packet, rest[1], None)
    return overload if isinstance(overload, OpOverload) else None


def _may_call(namespace: str, name: str) -> bool:
    return f"{namespace}.{name}" in _ALLOWED or (namespace == "aten" and name not in _FORBIDDEN)


def is_known(target: Any) -> bool:
    """Whether a program may call it."""
    return name_of(target) is not None


def is_assertion(target: Any) -> bool:
    """Whether it only checks its inputs (and can be left out)."""
    name = target._opname if isinstance(target, OpOverload) else getattr(target, "__name__", "")
    return name.startswith(("_assert", "sym_constrain_range", "_check"))
