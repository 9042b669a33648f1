"""Rules that users add for their own operations and layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket

from ...errors import UserError
from ..opnames import allow
from .flow import Flow
from .rule import Key, Rule, Rules
from .table import RULES

_REGISTERED: dict[Key, Rule] = {}


def register_rule(
    op: OpOverload | OpOverloadPacket | CustomOpDef | type[nn.Module] | str,
    rule: Rule | Callable[[Flow, fx.Node], Any],
) -> None:
    """Says how channels flow through an operation, for every program that is captured afterwards in this process.

    A rule of secateur's own for the same operation is replaced. Operations outside of `torch.ops.aten` need a rule to
    be captured at all, and every process that loads a program with them has to register them first.

    Args:
        op: The operation: `torch.ops.library.name`, what `torch.library.custom_op` returned, its name
            "library.name", or the class of a layer.
        rule: A `Rule`, or its `flow` alone if no constant of the operation depends on a width. `flow(flow, node)` is
            given the analysis so far and the call, and returns the labels of its output: `flow.labels(node.args[0])`
            if every element keeps its place; `flow.pin(node, labels, axes, reason)` if whole axes must stay; it may
            join labels with `flow.unify`.

    Raises:
        UserError: `op` is none of these.
    """
    found = rule if isinstance(rule, Rule) else Rule(rule)
    _REGISTERED[_key(op)] = found


def all_rules() -> Rules:
    """The built-in rules, and over them those that were registered."""
    return {**RULES, **_REGISTERED}


def _key(op: Any) -> Key:
    if isinstance(op, type) and issubclass(op, nn.Module):
        return op
    if isinstance(op, CustomOpDef):
        op = op._opoverload
    if isinstance(op, OpOverload):
        op = op.overloadpacket
    name = str(op) if isinstance(op, OpOverloadPacket) else op
    if not isinstance(name, str) or len(name.split(".")) != 2:
        raise UserError(
            "a rule needs an operation or a class of layers",
            where=repr(op),
            hint="pass torch.ops.library.name, its name 'library.name', or a subclass of nn.Module",
        )
    allow(name)
    return name
