"""Where a tensor without channels comes from: what a refusal says about it, and what the user can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor, fx

_MOST = 16
"""Values that are made of more are not described: it would help nobody, and analysis takes time linear in the graph."""
GENERIC = ("a tensor that cannot shrink", "make both operands come from layers")


def described(nodes: Iterable[fx.Node]) -> tuple[str, str]:
    """What the tensors are, in words of the model's author, and a hint.

    Args:
        nodes: Values without channels that meet channels.

    Returns:
        "numbers that forward makes, which cannot shrink" and the like.
    """
    found = list(islice(_leaves(nodes), _MOST))
    made = [node for node in found if node.op == "call_function" or "lifted_tensor" in str(node.target)]
    inputs = [node for node in found if node.op == "placeholder"]
    if not found or len(found) == _MOST or any(node.op == "call_module" for node in found):
        return GENERIC
    if made:
        return "numbers that forward makes, which cannot shrink", (
            f"{_made_by(made)}: hold one number for every channel in a parameter or a float buffer instead, "
            "which shrinks along"
        )
    if inputs:
        return "an input of the network, which cannot shrink", (
            f"put a layer between {_names(inputs)} and this; or prune the layers before and after"
        )
    return GENERIC[0], f"{_names(found)} keeps its size: hold it as floats, one for every channel, to let it shrink"


def _leaves(nodes: Iterable[fx.Node]) -> Iterator[fx.Node]:
    """What values are made of: layers, inputs, constants, and calls that make several numbers from sizes alone."""
    waiting, seen = list(nodes), set()
    while waiting and len(seen) < 8 * _MOST:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        tensors = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), Tensor)]
        if node.op == "call_function" and tensors:
            waiting += tensors
        elif _count(node.meta.get("val")) > 1:
            yield node


def _count(value: Any) -> int:
    return int(value.numel()) if isinstance(value, Tensor) else 0


def _made_by(nodes: list[fx.Node]) -> str:
    """The lines that make numbers, at most two of them."""
    lines = sorted({str(node.meta["source"]) for node in nodes if node.meta.get("source")})
    return f"they are made at {' and '.join(lines[:2])}" if lines else "forward makes them from sizes"


def _names(nodes: list[fx.Node]) -> str:
    return " and ".join(sorted({str(node.target) for node in nodes})[:2])
