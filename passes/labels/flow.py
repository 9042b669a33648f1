"""The abstract interpreter: runs the rules over the graph and records what they find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import Refused
from ..modulespec import extension_types
from . import hints
from .groups import Role
from .origin import described
from .rule import Rules, as_int, find_rule, op_name
from .values import Labels, collapse_equal
from .weights import attribute_of, canonical_names, contracted_weights


@dataclass(frozen=True)
class Use:
    """One axis of one parameter or buffer, indexed by labels.

    Attributes:
        tensor: Canonical dotted name (the first of those that share the tensor).
        layer: Module path of the layer that uses it.
        axis: The axis.
        role: What the tensor does for the labels.
        ids: int64 [size of the axis].
        where: Module path and source line of the call.
    """

    tensor: str
    layer: str
    axis: int
    role: Role
    ids: Tensor
    where: str


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
        widths: Whether channels that a normalisation averages over may go: see `passes/widths.py`.
        averaged: Normalisations that average over channels that may go, and the values they read.
        reads: Where weights read channels: node, the value that it reads, and the axis of the channels there, counted
            from the end.
    """

    def __init__(self, graph_module: fx.GraphModule, rules: Rules, widths: bool = False) -> None:
        self.graph_module = graph_module
        self.rules = rules
        self.widths = widths
        self.averaged: list[tuple[fx.Node, fx.Node]] = []
        self.values: dict[fx.Node, Any] = {}
        self.edges: list[tuple[Tensor, Tensor]] = []
        self.freezes: list[Freeze] = []
        self.splits: list[tuple[Labels, int]] = []
        self.uses: list[Use] = []
        self.elements: dict[str, Labels] = {}
        self.reads: list[tuple[fx.Node, fx.Node, int]] = []
        self.count = 1
        self._names = canonical_names(graph_module)
        self._frozen = torch.zeros(1024, dtype=torch.bool)
        self._by_axis: dict[tuple[str, int], Tensor] = {}
        self._weights = contracted_weights(graph_module, self._names)

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
        """Ids [size] along `axis`; other axes along which the labels differ are pinned."""
        axis %= len(labels.shape)
        reason = f"{op_name_of(self, node)} mixes the axis that its channels lie on"
        others = [other for other in labels.axes if other != axis]
        return self.pin(node, labels, others, reason, hints.ONE_AXIS).along(axis)

    def is_weight(self, node: fx.Node) -> bool:
        """Whether a node is a parameter that is read as the weight of matmuls and einsums, and nowhere else."""
        return node in self._weights

    # What rules record.

    def fresh(self, count: int) -> Tensor:
        """New ids [count]. One position alone gets 0: an axis of size 1 cannot shrink."""
        if count == 1:
            return torch.zeros(1, dtype=torch.int64)
        self.count += count
        return torch.arange(self.count - count, self.count)

    def same(self, a: Tensor, b: Tensor, node: fx.Node, reason: str, hint: str = "") -> Tensor:
        """Records that ids of broadcastable shapes are the same channels; where only one is labelled it must stay.

        Returns:
            The ids of either, where labelled.
        """
        a, b = torch.broadcast_tensors(a, b)
        both = (a != 0) & (b != 0)
        if bool(both.any()):
            self.edges.append((a[both], b[both]))
        self.freeze(torch.where(both, 0, a + b), node, reason, hint)
        return torch.where(a != 0, a, b)

    def pin(self, node: fx.Node, labels: Labels, axes: Iterable[int], reason: str, hint: str = "") -> Labels:
        """Records that no single position of some axes may go.

        Labels that lie on other axes as well become one unit for every position there: the heads of an attention, once
        something depends on the size of a head. Labels that lie on these axes alone are frozen.

        Returns:
            The labels that are left, which do not differ along `axes`.
        """
        rank = len(labels.shape)
        pinned = set(labels.axes) and {axis % rank for axis in axes} & set(labels.axes)
        if not pinned:
            return labels
        if pinned == set(labels.axes):
            self.freeze(labels.ids, node, reason, hint)
            return Labels.none(labels.shape)
        first = labels.ids.amax(sorted(pinned), keepdim=True)
        self.same(first, labels.ids, node, reason, hint)
        return Labels(first, labels.shape)

    def unify(self, node: fx.Node, values: Sequence[Labels]) -> Labels:
        """Labels of an elementwise operation on broadcast operands.

        Where the labels of one operand lie, another must have them too or have size 1; else they are pinned there.
        """
        out = values[0]
        for other in values[1:]:
            out = self._unify_two(node, out, other)
        return out

    def _unify_two(self, node: fx.Node, a: Labels, b: Labels) -> Labels:
        rank = max(len(a.shape), len(b.shape))
        a, b = a.with_rank(rank), b.with_rank(rank)
        shape = tuple(torch.broadcast_shapes(a.shape, b.shape))
        # A free vector along the size of heads (rotary frequencies, the scale of a norm of queries): the heads count.
        if self._counts(a) and b.axes == (rank - 1,) and rank - 1 in a.axes and self.is_free(b):
            b = self.pin(node, b, b.axes, _FREQUENCIES, hints.HEADS)
        elif self._counts(b) and a.axes == (rank - 1,) and rank - 1 in b.axes and self.is_free(a):
            a = self.pin(node, a, a.axes, _FREQUENCIES, hints.HEADS)
        for first, second in ((a, b), (b, a)):
            alone = [axis for axis in first.axes if axis not in second.axes and second.shape[axis] > 1]
            free = self._fix(node, first, alone) if alone else first
            a, b = (free, b) if first is a else (a, free)
        if a.labelled and b.labelled:
            common = set(a.axes) & set(b.axes)
            if not common:  # an outer product: an element has one label, that of the first operand
                self.freeze(b.ids, node, f"{op_name_of(self, node)} {_OUTER}", hints.PAIRS)
                return Labels(a.ids, shape)
            a = self.pin(node, a, set(a.axes) - common, f"{op_name_of(self, node)} {_OUTER}", hints.PAIRS)
            b = self.pin(node, b, set(b.axes) - common, f"{op_name_of(self, node)} {_OUTER}", hints.PAIRS)
            # An operand that loses its last label here has none in common with the other.
            ids = self.same(a.ids, b.ids, node, f"{op_name_of(self, node)} {_FIXED_PART}", hints.OTHER_STAYS)
            return Labels(collapse_equal(ids), shape)
        return Labels((a if a.labelled else b).ids, shape)

    def _fix(self, node: fx.Node, labels: Labels, axes: Sequence[int]) -> Labels:
        """Pins axes along which another operand has no channels, for the reason why it has none."""
        others = [n for n in node.all_input_nodes if is_tensor(n) and not self.labels(n).labelled]
        other, hint = described(others)
        return self.pin(node, labels, axes, f"{op_name_of(self, node)} joins it with {other}", hint)

    def _counts(self, labels: Labels) -> bool:
        """Whether these are computed and differ along several axes: heads and their size, no table of positions."""
        return len(labels.axes) > 1 and not self.is_free(labels)

    def is_free(self, labels: Labels) -> bool:
        """Whether these are the labels of the elements of one free parameter or buffer."""
        first = int(labels.ids.max())
        return any(int(own.ids.min()) <= first <= int(own.ids.max()) for own in self.elements.values())

    def freeze(self, ids: Tensor, node: fx.Node, reason: str, hint: str = "") -> None:
        """Records that labels must stay."""
        ids = ids[ids != 0].unique()
        if ids.numel():
            self.freezes.append(Freeze(ids, Refused(reason, where_of(node), hint or hints.BETWEEN)))
            if len(self._frozen) < self.count:
                self._frozen = torch.cat([self._frozen, torch.zeros(2 * self.count, dtype=torch.bool)])
            self._frozen[ids] = True

    def live(self, labels: Labels) -> Labels:
        """The labels, or none if all are known to stay: an operation that may start new ones then does."""
        ids = labels.ids[labels.ids != 0]
        known = ids[ids < len(self._frozen)]
        return Labels.none(labels.shape) if len(known) == len(ids) and bool(self._frozen[known].all()) else labels

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
        if tensor is not None:
            self._use(tensor, node, str(node.target), axis, role, ids)

    def use_weight(self, node: fx.Node, weight: fx.Node, axis: int, role: Role, ids: Tensor) -> None:
        """The same for an operation that reads a free parameter."""
        target = str(weight.target)
        owner = target.rpartition(".")[0] or target
        self._use(attribute_of(self.graph_module, target), node, owner, axis, role, ids)

    def _use(self, tensor: Tensor, node: fx.Node, layer: str, axis: int, role: Role, ids: Tensor) -> None:
        name = self._names[id(tensor)]
        before = self._by_axis.setdefault((name, axis), ids)
        if before is not ids:
            self.same(before, ids, node, "its weights are shared with a layer whose width is fixed", hints.SHARED)
        self.uses.append(Use(name, layer, axis, role, ids, where_of(node)))

    def read(self, node: fx.Node, source: fx.Node, axis: int) -> None:
        """Records that a node reads the channels of a value by weights: where gates are put.

        Args:
            node: The layer or operation.
            source: The value.
            axis: Its axis of channels.
        """
        self.reads.append((node, source, axis % len(shape_of(source)) - len(shape_of(source))))

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
            self._stop(node, "it is an output of the network", hints.OUTPUT)
            return None
        module = self.module(node) if node.op == "call_module" else None
        rule = find_rule(self.rules, node, module)
        if rule is not None:
            return rule.flow(self, node)
        if module is not None and type(module).__name__ in extension_types():
            self._stop(node, "the network is quantised already", hints.QUANTISED)
        else:
            self._stop(node, f"no rule for {op_name_of(self, node)}", hints.NO_RULE)
        if module is not None:
            self.fix_parameters(node)
        return unlabelled(node)

    def _stop(self, node: fx.Node, reason: str, hint: str = "") -> None:
        for source in node.all_input_nodes:
            value = self.values[source]
            for labels in value if isinstance(value, tuple) else (value,):
                if isinstance(labels, Labels):
                    self.freeze(labels.ids, source if node.op == "output" else node, reason, hint)

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
        large = tensor.numel() > _MOST_ELEMENTS
        if not tensor.is_floating_point() or tensor.numel() < 2 or large or self.is_weight(node):
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
            self.freeze(value.ids, node, "it is used on its own, apart from the other channels", hints.APART)
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
                refused = Refused("its weights are shared", use.where or use.layer, hints.SHARED)
                self.freezes.append(Freeze(both[0][~labelled], refused))


_FREQUENCIES = "it lies along the size of heads, which stays"
_FIXED_PART = "joins it with channels that cannot shrink"
_OUTER = "gives every pair of its channels an element of its own"
_MOST_ELEMENTS = 2**22
"""Larger free tensors have no labels: one for every element would take more memory than the analysis is worth."""


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
