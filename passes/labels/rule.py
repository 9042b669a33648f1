"""A rule: how labels flow through one operation, and how the operation is rewritten once channels are gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.node import map_arg

if TYPE_CHECKING:
    from .flow import Flow
    from .resize import Resize

Key = str | type[nn.Module]
"""What a rule is found by: the module type of a layer, or the name of an operation without overload ("aten.add")."""


@dataclass(frozen=True)
class Rule:
    """What the analysis knows about one operation.

    Attributes:
        flow: From the labels of the inputs to those of the output: `Labels`, a tuple of them for several outputs, or
            None for values that are no tensors. Records what has to be equal, what cannot shrink and which parameters
            belong to the channels.
        rewrite: Changes the constants and module attributes that depend on a width, in place, in a copy of the graph;
            None if there are none. Called only where an input or the output changes its shape.
    """

    flow: Callable[[Flow, fx.Node], Any]
    rewrite: Callable[[Resize, fx.Node], None] | None = None


Rules = Mapping[Key, Rule]


def with_rule(rules: Rules, key: Key, rule: Rule) -> dict[Key, Rule]:
    """A copy of a rule table with one rule added or replaced."""
    return {**rules, key: rule}


def op_name(node: fx.Node) -> str:
    """Name of the operation of a `call_function` node: "aten.add" for every overload of it, in place or not."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = str(target.overloadpacket)
        return name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}"


def find_rule(rules: Rules, node: fx.Node, module: nn.Module | None) -> Rule | None:
    """The rule of a node: by the class of the module it calls (or the nearest base class), or by its operation."""
    if module is None:
        return rules.get(op_name(node))
    return next((rules[cls] for cls in type(module).__mro__ if cls in rules), None)


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an ATen call by their schema names, defaults filled in; nodes stay nodes."""
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values.update(zip((a.name for a in schema), node.args, strict=False))
    values.update(node.kwargs)
    return values


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Replaces one argument of an ATen call, by its schema name."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [a.name for a in node.target._schema.arguments]
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def concrete(value: Any) -> Any:
    """Arguments at the example inputs: nodes replaced by the values they have there."""
    return map_arg(value, lambda node: as_int(node.meta["val"]))


def as_int(value: Any) -> Any:
    """A symbolic size as the number it is at the example inputs; other values unchanged."""
    return int(value) if isinstance(value, torch.SymInt) else value
