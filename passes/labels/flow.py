"""The abstract interpreter: runs the rules over the graph and records what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import Refused
from .groups import Role
from .rule import Rules, as_int, find_rule, op_name
from .values import Labels, collapse_equal


@dataclass(frozen=True)
class Use:
    """One axis of one parameter or buffer, indexed by labels.

    Attributes:
        tensor: Canonical dotted name (the first of those that share the tensor).
        layer: Module path of the layer that uses it.
        axis: The axis.
        role: What the tensor does for the labels.
        ids: int64 [size of the axis].
    """

    tensor: str
    layer: str
    axis: int
    role: Role
    ids: Tensor


@dataclass(frozen=True)
class Freeze:
    """Labels that must stay, and why."""

    ids: Tensor
    refused: Refused


class Flow:
    """What the rules see and what they record, in graph order.

    Attributes:
        values: Labels by node; a tuple of labels for several outputs, None for what is no tensor.
        edges: Pairs of int64 arrays of equal shape: these labels are the same channel.
        freezes: Labels that must stay.
        splits: Labels that a reshape spread over several axes, with the axis that shrinks if nothing else decides.
        uses: Axes of parameters and buffers, in graph order.
        elements: Labels of free parameters and buffers (`get_attr`), by canonical name.
    """

    def __init__(self, graph_module: fx.GraphModule, rules: Rules) -> None:
        self.graph_module = graph_module
        self.rules = rules
        self.values: dict[fx.Node, Any] = {}
        self.edges: list[tuple[Tensor, Tensor]] = []
        self.freezes: list[Freeze] = []
        self.splits: list[tuple[Labels, int]] = []
        self.uses: list[Use] = []
        self.elements: dict[str, Labels] = {}
        self.count = 1
        self._names = canonical_names(graph_module)
        self._by_axis: dict[tuple[str, int], Tensor] = {}

    # What rules ask.

    def module(self, node: fx.Node) -> nn.Module:
        """The layer that a `call_module` node calls."""
        return self.graph_module.get_submodule(str(node.target))

    def labels(self, node: fx.Node) -> Labels:
        """Labels of a node's value."""
        value = self.values[node]
        return value if isinstance(value, Labels) else Labels.none(shape_of(node))

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's value at the example inputs."""
        return shape_of(node)

    def only_along(self, node: fx.Node, labels: Labels, axis: int) -> Tensor:
        """Ids [size] along `axis`; labels that differ along another axis are frozen and read as 0."""
        axis %= len(labels.shape)
        if any(other != axis for other in labels.axes):
            self.freeze(labels.ids, node, f"{op_name_of(self, node)} mixes the axis that its channels lie on")
            return torch.zeros(labels.shape[axis], dtype=torch.int64)
        return labels.along(axis)

    # What rules record.

    def fresh(self, count: int) -> Tensor:
        """New ids [count]. One position alone gets 0: an axis of size 1 cannot shrink."""
        if count == 1:
            return torch.zeros(1, dtype=torch.int64)
        self.count += count
        return torch.arange(self.count - count, self.count)

    def same(self, a: Tensor, b: Tensor, node: fx.Node, reason: str) -> Tensor:
        """Records that ids of broadcastable shapes are the same channels; where only one is labelled it must stay.

        Returns:
            The ids of either, where labelled.
        """
        a, b = torch.broadcast_tensors(a, b)
        both = (a != 0) & (b != 0)
        if bool(both.any()):
            self.edges.append((a[both], b[both]))
        self.freeze(torch.where(both, 0, a + b), node, reason)
        return torch.where(a != 0, a, b)

    def unify(self, node: fx.Node, values: Sequence[Labels]) -> Labels:
        """Labels of an elementwise operation on broadcast operands.

        An operand without labels must have size 1 wherever the others' labels lie, or those cannot shrink.
        """
        out = values[0]
        for other in values[1:]:
            out = self._unify_two(node, out, other)
        return out

    def _unify_two(self, node: fx.Node, a: Labels, b: Labels) -> Labels:
        rank = max(len(a.shape), len(b.shape))
        (ids_a, shape_a), (ids_b, shape_b) = (
            (v.ids.reshape([1] * (rank - v.ids.ndim) + list(v.ids.shape)), (1,) * (rank - len(v.shape)) + v.shape)
            for v in (a, b)
        )
        shape = tuple(torch.broadcast_shapes(shape_a, shape_b))
        if a.labelled and b.labelled:
            # Go on with the ids that differ along fewer axes: those of a channel axis, not of every element of a
            # parameter, so that the layers behind see channels.
            few, many = sorted((ids_a, ids_b), key=Tensor.numel)
            return Labels(collapse_equal(self.same(few, many, node, f"{op_name_of(self, node)} {_FIXED_PART}")), shape)
        if not a.labelled:
            ids_a, shape_a, ids_b, shape_b = ids_b, shape_b, ids_a, shape_a
        if any(ids_a.shape[axis] > 1 and shape_b[axis] > 1 for axis in range(rank)):
            self.freeze(ids_a, node, f"{op_name_of(self, node)} {_FIXED}", "make both operands come from layers")
        return Labels(ids_a, shape)

    def freeze(self, ids: Tensor, node: fx.Node, reason: str, hint: str = "") -> None:
        """Records that labels must stay."""
        ids = ids[ids != 0].unique()
        if ids.numel():
            self.freezes.append(Freeze(ids, Refused(reason, where_of(node), hint)))

    def rectangle(self, labels: Labels) -> None:
        """Notes labels that a reshape spread over several axes: in the end only one of them can shrink.

        If nothing else decides, it is the longest axis (the last of equals): the channels of each group in a channel
        shuffle, not the groups.
        """
        if len(labels.axes) > 1:
            self.splits.append((labels, max(labels.axes, key=lambda axis: (labels.shape[axis], axis))))

    def use(self, node: fx.Node, attribute: str, axis: int, role: Role, ids: Tensor) -> None:
        """Records that an axis of a layer's parameter or buffer is indexed by labels ([size], 0 where by none)."""
        tensor = getattr(self.module(node), attribute, None)
        if tensor is None:
            return
        name = self._names[id(tensor)]
        before = self._by_axis.setdefault((name, axis), ids)
        if before is not ids:
            self.same(before, ids, node, "its weights are shared with a layer whose width is fixed")
        self.uses.append(Use(name, str(node.target), axis, role, ids))

    # The walk.

    def run(self) -> None:
        """Visits every node once."""
        for node in self.graph_module.graph.nodes:
            self.values[node] = self._settle(node, self._visit(node))

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return Labels.none(shape_of(node)) if is_tensor(node) else None
        if node.op == "get_attr":
            return self._constant(node)
        if node.op == "output":
            self._stop(node, "it is an output of the network")
            return None
        module = self.module(node) if node.op == "call_module" else None
        rule = find_rule(self.rules, node, module)
        if rule is not None:
            return rule.flow(self, node)
        self._stop(node, f"no rule for {op_name_of(self, node)}", "add one with register_rule")
        if module is not None:
            self.fix_parameters(node)
        return unlabelled(node)

    def _stop(self, node: fx.Node, reason: str, hint: str = "") -> None:
        for source in node.all_input_nodes:
            value = self.values[source]
            for labels in value if isinstance(value, tuple) else (value,):
                if isinstance(labels, Labels):
                    self.freeze(labels.ids, node, reason, hint)

    def fix_parameters(self, node: fx.Node) -> None:
        """Records that no axis of the layer's own parameters and buffers may shrink."""
        for name, tensor in self.module(node).state_dict(keep_vars=True).items():
            if "." not in name:
                for axis, size in enumerate(tensor.shape):
                    self.use(node, name, axis, Role.CARRY, torch.zeros(size, dtype=torch.int64))

    def _constant(self, node: fx.Node) -> Any:
        """A free parameter or buffer: every element gets its own id, operations then decide which axis shrinks."""
        tensor = attribute_of(self.graph_module, str(node.target))
        if not isinstance(tensor, Tensor):
            return None
        if not tensor.is_floating_point() or tensor.numel() < 2:
            return Labels.none(tensor.shape)
        name = self._names[id(tensor)]
        if name not in self.elements:
            self.elements[name] = Labels(self.fresh(tensor.numel()).reshape(tensor.shape), tuple(tensor.shape))
        return self.elements[name]

    def _settle(self, node: fx.Node, value: Any) -> Any:
        """A value that is one channel as a whole can never lose it: freezes the channel and drops the label."""
        if isinstance(value, tuple):
            return tuple(self._settle(node, part) for part in value)
        if isinstance(value, Labels) and value.ids.numel() == 1 and value.labelled:
            self.freeze(value.ids, node, "it is used on its own, apart from the other channels")
            return Labels.none(value.shape)
        return value

    def join_shared(self) -> None:
        """Free parameters that are also a layer's: both views of the tensor are the same channels."""
        for use in self.uses:
            if use.tensor in self.elements:
                ids = self.elements[use.tensor].ids
                along = Labels.on_axis(ids.shape, use.axis, use.ids).ids
                both = torch.broadcast_tensors(ids, along)
                labelled = both[1] != 0
                self.edges.append((both[0][labelled], both[1][labelled]))
                self.freezes.append(Freeze(both[0][~labelled], Refused("its weights are shared", use.layer)))


_FIXED = "joins it with a tensor that cannot shrink"
_FIXED_PART = "joins it with channels that cannot shrink"


def canonical_names(graph_module: nn.Module) -> dict[int, str]:
    """Dotted name of every parameter and buffer by its identity; the first name of a shared one."""
    names: dict[int, str] = {}
    for name, tensor in graph_module.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), name)
    for name, tensor in graph_module.named_buffers():
        names.setdefault(id(tensor), name)
    return names


def attribute_of(graph_module: nn.Module, target: str) -> Any:
    """The object that a `get_attr` node reads."""
    path, _, name = target.rpartition(".")
    return getattr(graph_module.get_submodule(path), name)


def op_name_of(flow: Flow, node: fx.Node) -> str:
    """The operation as people know it: "aten.add", "LayerNorm"."""
    return type(flow.module(node)).__name__ if node.op == "call_module" else op_name(node)


def where_of(node: fx.Node) -> str:
    """Module path and source line of a node, as far as known."""
    path = node.meta.get("path") or (str(node.target) if node.op == "call_module" else "")
    return ", ".join(str(part) for part in (path, node.meta.get("source")) if part)


def is_tensor(node: fx.Node) -> bool:
    """Whether the value of a node is one tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor value at the example inputs."""
    return tuple(as_int(size) for size in node.meta["val"].shape)


def unlabelled(node: fx.Node) -> Any:
    """The labels of a value without channels, whatever its structure."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return Labels.none([as_int(size) for size in value.shape])
    if isinstance(value, list | tuple):
        return tuple(
            Labels.none([as_int(s) for s in part.shape]) if isinstance(part, Tensor) else None for part in value
        )
    return None
