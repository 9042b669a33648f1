"""What remains of every value once units are gone: asked by the rules that rewrite constants."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ...errors import UserError
from .flow import where_of
from .rule import op_name, set_argument
from .values import Labels


class Resize:
    """Old and new shapes of the values of a graph that is being rewritten in place.

    Args:
        graph_module: The copy that is rewritten.
        values: Labels by node name, as the analysis found them.
        removed: bool [number of ids]: whether an id is removed.
    """

    def __init__(self, graph_module: fx.GraphModule, values: Mapping[str, Any], removed: np.ndarray) -> None:
        self.graph_module = graph_module
        self._values = values
        self._removed = torch.from_numpy(removed)
        self._masks: dict[fx.Node, Any] = {}

    def module(self, node: fx.Node) -> nn.Module:
        """The layer that a `call_module` node calls."""
        return self.graph_module.get_submodule(str(node.target))

    def masks(self, node: fx.Node) -> Any:
        """Per axis a bool tensor of the positions that stay, None if all do; a tuple of these for several outputs."""
        if node not in self._masks:
            value = self._values.get(node.name)
            parts = tuple(map(self._remaining, value)) if isinstance(value, tuple) else self._remaining(value)
            self._masks[node] = parts
        return self._masks[node]

    def mask(self, node: fx.Node, axis: int) -> torch.Tensor | None:
        """Positions of an axis that stay, bool [old size], or None if all do."""
        return self.masks(node)[axis]

    def old_shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's value before."""
        return self._values[node.name].shape

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's value after."""
        return self._shape(self._values[node.name], self.masks(node))

    def shapes(self, node: fx.Node) -> tuple[tuple[int, ...], ...]:
        """Shapes of the outputs of a node with several."""
        return tuple(self._shape(v, m) for v, m in zip(self._values[node.name], self.masks(node), strict=True))

    def changed(self, node: fx.Node) -> bool:
        """Whether the node's value or an input of it changes its shape."""
        return any(self._shrinks(n) for n in (node, *node.all_input_nodes))

    def resize_argument(self, node: fx.Node, name: str, sizes: Any) -> None:
        """Rewrites a list of sizes, one per axis of the node's value.

        Numbers are replaced where the axis changes, and the number in a size that is one times a dynamic size. Any
        other size that the graph computes itself is left to be inferred (-1).

        Raises:
            UserError: More than one size would have to be inferred.
        """
        old, new = self.old_shape(node), self.shape(node)
        out = list(sizes)
        for axis, (before, after) in enumerate(zip(old, new, strict=True)):
            if before == after or out[axis] == -1:
                continue
            if isinstance(out[axis], fx.Node):
                out[axis] = scaled_size(node, out[axis], before, after) or -1
            else:
                out[axis] = after
        if out.count(-1) > max(1, list(sizes).count(-1)):
            raise UserError(
                "a shape with two sizes that depend on channels cannot be rewritten",
                where=where_of(node),
                why="both are computed by the graph from a dynamic size",
                hint="write the number of channels as a constant, or keep this group whole",
            )
        set_argument(node, name, out)
        for before in sizes:
            if isinstance(before, fx.Node):
                self.erase_unused(before)

    def erase_unused(self, node: fx.Node) -> None:
        """Erases a constant or a size, what it is made of, and its buffer, as far as nothing else uses them."""
        if node.users or node.op not in ("get_attr", "call_function"):
            return
        graph, inputs, target = node.graph, node.all_input_nodes, str(node.target)
        was_attribute = node.op == "get_attr"
        graph.erase_node(node)
        if was_attribute and all(other.target != target for other in graph.nodes):
            path, _, name = target.rpartition(".")
            delattr(self.graph_module.get_submodule(path), name)
        for source in inputs:
            self.erase_unused(source)

    def _shrinks(self, node: fx.Node) -> bool:
        masks = self.masks(node)
        if isinstance(self._values.get(node.name), tuple):
            return any(m is not None for part in masks if part is not None for m in part)
        return masks is not None and any(m is not None for m in masks)

    def _remaining(self, labels: Labels | None) -> tuple[torch.Tensor | None, ...] | None:
        if labels is None:
            return None
        gone = self._removed[labels.ids]
        none = (None,) * len(labels.shape)
        if not bool(gone.any()):
            return none
        masks: list[torch.Tensor | None] = list(none)
        for axis in labels.axes:
            slabs = gone.movedim(axis, 0).reshape(gone.shape[axis], -1).all(1)
            if bool(slabs.any()):
                masks[axis] = ~slabs
        found = [(axis, mask) for axis, mask in enumerate(masks) if mask is not None]
        if len(found) != 1 or not bool((gone.movedim(found[0][0], -1) == ~found[0][1]).all()):
            raise AssertionError("removed channels are not whole slices of one axis")
        return tuple(masks)

    @staticmethod
    def _shape(labels: Labels, masks: tuple[torch.Tensor | None, ...]) -> tuple[int, ...]:
        sizes = zip(labels.shape, masks, strict=True)
        return tuple(size if mask is None else int(mask.sum()) for size, mask in sizes)


def times_batch(size: Any) -> tuple[int, fx.Node] | None:
    """A size that is a number times a size of an input (what the graph of `heads * x.shape[0]` is), as its factors."""
    if not isinstance(size, fx.Node) or size.target is not operator.mul:
        return None
    numbers = [factor for factor in size.args if isinstance(factor, int)]
    lengths = [factor for factor in size.args if isinstance(factor, fx.Node) and op_name(factor) == "aten.sym_size"]
    return (numbers[0], lengths[0]) if len(numbers) == len(lengths) == 1 else None


def scaled_size(node: fx.Node, size: Any, before: int, after: int) -> fx.Node | None:
    """The size of a merged axis of which only a share is left; None if it is none, or no whole number of times."""
    factors = times_batch(size)
    if factors is None or factors[0] * after % before:
        return None
    with node.graph.inserting_before(node):
        new = node.graph.call_function(operator.mul, (factors[0] * after // before, factors[1]))
    new.meta = {key: value for key, value in node.meta.items() if key != "val"}
    return new
