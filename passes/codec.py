"""Graph arguments and nested containers as JSON.

JSON lists, strings, booleans, null and finite numbers stand for themselves; everything else is an object with one key
that names its kind: `{"node": "conv1"}`, `{"tuple": […]}`, `{"dtype": "float32"}`. Only builtin containers are held, so
that reading needs no class but ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.immutable_collections import immutable_dict, immutable_list

_LEAF = {"leaf": True}
_SEQUENCES = (list, immutable_list, torch.Size)


class CodecError(ValueError):
    """A value that has no JSON form, or JSON that is no value."""


def encode(value: Any, tensor: Callable[[Tensor], str] | None = None) -> Any:
    """JSON form of a value.

    Args:
        value: Numbers, strings, graph nodes, dtypes and the like in builtin containers.
        tensor: Names a tensor; tensors are refused without it.

    Raises:
        CodecError: Something else in it.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if type(value) is tuple or isinstance(value, torch.Size):
        return {"tuple": [encode(item, tensor) for item in value]}
    if type(value) in _SEQUENCES:
        return [encode(item, tensor) for item in value]
    if type(value) in (dict, immutable_dict):
        return {"dict": [[encode(key), encode(item, tensor)] for key, item in value.items()]}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, Tensor) and tensor is not None:
        return {"tensor": tensor(value)}
    if isinstance(value, slice):
        return {"slice": [encode(part) for part in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, complex):
        return {"complex": [encode(value.real), encode(value.imag)]}
    for kind in (torch.dtype, torch.layout, torch.memory_format):
        if isinstance(value, kind):
            return {kind.__name__: str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    raise CodecError(f"a {type(value).__name__} cannot be saved")


def decode(data: Any, nodes: Mapping[str, fx.Node] | None = None, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """The value that `encode` gave as JSON.

    Raises:
        CodecError: It is none, or it names a node or tensor that is not there.
    """
    if isinstance(data, list):
        return [decode(item, nodes, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) != 1:
        raise CodecError(f"an object with one key was expected, not {sorted(data)}")
    kind, content = next(iter(data.items()))
    try:
        if kind == "tuple":
            return tuple(decode(item, nodes, tensors) for item in content)
        if kind == "dict":
            return {decode(key): decode(item, nodes, tensors) for key, item in content}
        if kind == "node":
            return (nodes or {})[content]
        if kind == "tensor":
            return (tensors or {})[content]
        if kind == "slice":
            return slice(*(decode(part, nodes) for part in content))
        if kind in _SCALARS:
            return _SCALARS[kind](content)
    except CodecError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CodecError(f"{kind} {content!r} means nothing") from error
    raise CodecError(f"unknown kind of value {kind!r}")


def encode_structure(value: Any) -> Any:
    """JSON form of the nesting of a value; what is in the containers is left out."""
    if type(value) in (tuple, list):
        items = [encode_structure(item) for item in value]
        return {"tuple": items} if type(value) is tuple else items
    if type(value) is dict:
        return {"dict": [[encode(key), encode_structure(item)] for key, item in value.items()]}
    if isinstance(value, Mapping | tuple | list):
        raise CodecError(f"a {type(value).__name__} cannot be saved; use a dict, tuple or list")
    return _LEAF


def _constant(kind: type) -> Callable[[str], Any]:
    def read(name: str) -> Any:
        value = getattr(torch, name) if name.isidentifier() else None
        if not isinstance(value, kind):
            raise ValueError(name)
        return value

    return read


_SCALARS: Mapping[str, Callable[[Any], Any]] = {
    "float": float,
    "complex": lambda parts: complex(*(decode(part) for part in parts)),
    "ellipsis": lambda _: Ellipsis,
    "dtype": _constant(torch.dtype),
    "layout": _constant(torch.layout),
    "memory_format": _constant(torch.memory_format),
    "device": torch.device,
    "leaf": lambda _: 0,
}
