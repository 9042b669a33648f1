"""What every fx node yields: types and shapes at two batch sizes, and two lengths of the axes that may change theirs.

A dimension that differs between the two follows the batch or a length; every other one is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..passes.dynamic_axes import names_in_graph, other_lengths
from ..passes.program import Program
from ..passes.shapes import batch_size, flatten_inputs, resize_batch, values_of


@dataclass(frozen=True)
class TensorFact:
    """Type and shape of a tensor.

    Attributes:
        dtype: Element type.
        shape: Sizes at the first batch size.
        other: Sizes at the second batch size.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    other: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def static(self) -> bool:
        """Whether no axis follows the batch."""
        return self.shape == self.other

    def dynamic(self, axis: int) -> bool:
        """Whether this axis follows the batch."""
        return self.shape[axis] != self.other[axis]

    def pair(self, axis: int) -> tuple[int, int]:
        """Size of an axis at both batch sizes."""
        return self.shape[axis], self.other[axis]


Fact = TensorFact | tuple["Fact", ...] | int | float | bool | None
"""Fact about a node: one per tensor, nested as the node's value is; a number stands for itself (at the first size)."""


@dataclass(frozen=True)
class Facts:
    """Facts about a program.

    Attributes:
        nodes: By fx node.
        inputs: Example values of the placeholders: tensors, or constants baked into the call.
        batch: The two batch sizes, or None if the batch is static.
    """

    nodes: Mapping[fx.Node, Fact]
    inputs: Mapping[fx.Node, Any]
    batch: tuple[int, int] | None


def gather_facts(program: Program) -> Facts:
    """Types and shapes of every node, by fake tensors, at two sizes of whatever is dynamic (one if nothing is)."""
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    args, kwargs = program.example_args, program.example_kwargs
    examples = flatten_inputs(program.graph_module, args, kwargs)
    found = batch_size(args, kwargs)
    batch = None
    if program.static_batch is None and found is not None:
        # 1 would broadcast; the second size is no multiple of the first.
        batch = (max(found, 2), 2 * max(found, 2) + 1)
    calls = [resize_batch(args, kwargs, size) if size else (args, kwargs) for size in batch or (None, None)]
    calls[1] = other_lengths(names_in_graph(program.graph), *calls[1], program.dynamic)
    runs = [values_of(program.graph_module, *call) for call in calls]
    nodes = {node: _join(value, runs[-1][node]) for node, value in runs[0].items()}
    return Facts(nodes, dict(zip(placeholders, examples, strict=True)), batch)


def _join(first: Any, second: Any) -> Fact:
    if isinstance(first, Tensor):
        return TensorFact(first.dtype, tuple(first.shape), tuple(second.shape))
    if isinstance(first, list | tuple):
        return tuple(_join(a, b) for a, b in zip(first, second, strict=True))
    return first if isinstance(first, int | float | bool) else None
