"""What a lowering function works with: the values lowered so far, the facts, and the ONNX graph under construction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from onnx import helper
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from ..errors import UnsupportedError
from ..passes.program import Program
from .node_facts import Facts, TensorFact
from .onnx_builder import GraphBuilder

Value = str | tuple["Value", ...] | None
"""Name of an ONNX value, or several for an operation with several results."""

INT64_MAX = 2**63 - 1


class NoLowering(Exception):
    """A lowering function declines a case; the exporter's own translation is tried instead."""


@dataclass
class Lowering:
    """State of one lowering.

    Attributes:
        program: What is lowered.
        facts: Types and shapes of every node.
        opset: ONNX operator set.
        dialect: Which Q/DQ the target's runtime fuses and accepts; see `Target`.
        builder: The graph under construction.
        env: Lowered values by fx node. A symbolic size is an int64 tensor of shape [1].
        fallbacks: Nodes that took the exporter's translation.
        rewrites: Subgraphs that took an equal but faster form, by the ONNX node that replaces them.
    """

    program: Program
    facts: Facts
    opset: int
    dialect: str = "onnxruntime"
    builder: GraphBuilder = field(default_factory=GraphBuilder)
    env: dict[fx.Node, Value] = field(default_factory=dict)
    fallbacks: list[Fallback] = field(default_factory=list)
    rewrites: dict[str, str] = field(default_factory=dict)
    _parameters: dict[int, str] = field(default_factory=dict)

    def value(self, node: Any) -> str:
        """Name of the single ONNX value of an fx node."""
        if not isinstance(node, fx.Node):
            raise NoLowering(f"expected a tensor, got {node!r}")
        value = self.env.get(node)
        if not isinstance(value, str):
            raise NoLowering(f"{node.name} is not a single tensor")
        return value

    def fact(self, node: Any) -> TensorFact:
        """Type and shape of an fx node that yields one tensor."""
        fact = self.facts.nodes.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(fact, TensorFact):
            raise NoLowering(f"{node} is not a tensor")
        return fact

    def emit(
        self, node: fx.Node, op_type: str, inputs: Sequence[str], *, part: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """Appends an ONNX node named after the fx node (plus `/part` for a helper; dots belong to module paths).

        Returns:
            The name of its output, or a tuple of names if `outputs` > 1.
        """
        name = f"{node.name}/{part}" if part else node.name
        names = (name,) if outputs == 1 else tuple(f"{name}/{i}" for i in range(outputs))
        self.builder.node(op_type, inputs, names, name=name, **attributes)
        return names[0] if outputs == 1 else names

    def constant(self, node: fx.Node, part: str, value: Any, dtype: Any = np.int64) -> str:
        """An initialiser that belongs to one fx node."""
        return self.builder.constant(f"{node.name}/{part}", np.asarray(value, dtype=dtype))

    def parameter(self, name: str, tensor: Tensor) -> str:
        """An initialiser under a dotted module name; a tensor shared by several modules is stored once."""
        if "." not in name and any(node.name == name and node.op != "get_attr" for node in self.program.graph.nodes):
            name += "/value"  # a parameter of the root module may be called like a node
        held = self._parameters.setdefault(id(tensor), name)
        return self.builder.constant(held, array_of(tensor))

    def cast(self, node: fx.Node, value: str, have: torch.dtype, want: torch.dtype, *, part: str = "cast") -> str:
        """Casts a value if its type differs."""
        return value if have == want else self.emit(node, "Cast", [value], part=part, to=onnx_dtype(want))

    def operand(self, node: fx.Node, argument: Any, dtype: torch.dtype, *, part: str) -> str:
        """A tensor, Python number or symbolic size as an ONNX value of the given type."""
        if isinstance(argument, fx.Node):
            fact = self.facts.nodes.get(argument)
            if isinstance(fact, TensorFact):
                return self.cast(node, self.value(argument), fact.dtype, dtype, part=f"{part}_cast")
            scalar = self.emit(node, "Squeeze", [self.value(argument)], part=f"{part}_scalar")
            return self.cast(node, scalar, torch.int64, dtype, part=f"{part}_cast")
        return self.constant(node, part, argument, numpy_dtype(dtype))

    def shape_vector(self, node: fx.Node, sizes: Sequence[Any], *, part: str = "shape") -> str:
        """A list of sizes, some of them symbolic, as an int64 vector."""
        if all(isinstance(size, int) for size in sizes):
            return self.constant(node, part, list(sizes))
        pieces = [
            self.value(size) if isinstance(size, fx.Node) else self.constant(node, f"{part}{i}", [size])
            for i, size in enumerate(sizes)
        ]
        return pieces[0] if len(pieces) == 1 else self.emit(node, "Concat", pieces, part=part, axis=0)

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a `call_module` node calls."""
        return self.program.graph_module.get_submodule(str(node.target))


@dataclass(frozen=True)
class Fallback:
    """A node that took the exporter's translation.

    Attributes:
        node: Name of the fx node.
        operation: What it computes.
        reason: Why our own lowering did not take it.
    """

    node: str
    operation: str
    reason: str


OpLowering = Callable[[Lowering, fx.Node, SimpleNamespace], Value]
"""Lowers a function call; the arguments are those of the operator's schema, by name, defaults filled in."""

ModuleLowering = Callable[[Lowering, fx.Node, Any], Value]
"""Lowers a module call."""


def arguments(node: fx.Node) -> SimpleNamespace:
    """Arguments of a call by their names in the operator's schema, defaults filled in."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        names = ("self", "other", *(f"arg{i}" for i in range(2, len(node.args))))
        return SimpleNamespace(**dict(zip(names, node.args, strict=False)), **node.kwargs)
    given: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        if position < len(node.args) and not argument.kwarg_only:
            given[argument.name] = node.args[position]
        else:
            given[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return SimpleNamespace(**given)


def function_name(target: Any) -> str:
    """Key of a called function in the tables: the ATen name without overload, or the Python operator's."""
    if isinstance(target, OpOverload):
        return target._schema.name.removeprefix("aten::")
    return getattr(target, "__name__", str(target))


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor as a contiguous NumPy array on the host."""
    detached = tensor.detach().cpu()
    if detached.dtype is torch.bfloat16:
        raise UnsupportedError(
            "a weight is bfloat16",
            why="the runtimes that secateur exports to compute in float32 or int8",
            hint="convert the model with .float() before capture",
        )
    return detached.contiguous().numpy()


def numpy_dtype(dtype: torch.dtype) -> np.dtype:
    """NumPy type of a torch type."""
    return array_of(torch.empty(0, dtype=dtype)).dtype


def onnx_dtype(dtype: torch.dtype) -> int:
    """ONNX element type of a torch type."""
    return helper.np_dtype_to_tensor_dtype(numpy_dtype(dtype))


def spread(value: Any, count: int) -> list[int]:
    """A per-axis parameter as a list: torch allows one number (or a list of one) for all axes."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def positive_axis(axis: int, rank: int) -> int:
    """An axis counted from the front."""
    return axis + rank if axis < 0 else axis
