"""Order of channels: what has to be permuted so that the outputs of some layers lie in another order.

An implanted layer computes its kept channels first and its implanted ones last. Everything behind it has to follow:
biases, normalisation, depthwise convolutions, the columns of the weights that read them, and whatever is added to
them. The new order of every value is found by running through the graph once. Weights are permuted offline; the
graph itself gets no gather. The only constants that change are the amounts of a zero padding along the channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from ..errors import Refused
from .implant_places import Last, Places
from .labels.flow import Flow, attribute_of, canonical_names, is_tensor, op_name_of, shape_of, unlabelled, where_of
from .labels.rule import arguments, find_rule
from .labels.rules_join import flow_cat, flow_pad
from .labels.rules_layers import is_depthwise
from .labels.rules_pointwise import flow_pointwise
from .labels.values import Labels
from .program import Program


@dataclass(frozen=True)
class Order:
    """The order of a value's channels: position i on `axis` holds what was at `index[i]`."""

    axis: int
    index: np.ndarray


@dataclass(frozen=True)
class Reordering:
    """What to permute.

    Attributes:
        positions: For each tensor and axis the old position at every new one.
        pads: New amounts in front and behind along the axis of channels, by node name: (axis, front, back).
    """

    positions: Mapping[str, Mapping[int, np.ndarray]]
    pads: Mapping[str, tuple[int, int, int]]


def find_order(program: Program, last: Last) -> Reordering | Refused:
    """The permutation of all weights after which the given rows are the last ones; the function stays the same.

    Kept channels stay in their order, and so do those that come last, with one exception: where a zero padding adds
    channels (a residual shortcut without weights), the channels of the narrower value lie between the added ones.

    Args:
        program: The program; not changed.
        last: Output rows that come last, for all weights that compute the same channels.

    Returns:
        The permutation, or where and why there is none.
    """
    try:
        return _Walk(program, last).run()
    except _Stop as stop:
        return stop.refused


class _Stop(Exception):
    def __init__(self, node: fx.Node, reason: str, hint: str = "keep these units whole, or prune them") -> None:
        super().__init__(reason)
        self.refused = Refused(reason, where_of(node) or node.name, hint)


class _Walk:
    """One run through a graph."""

    def __init__(self, program: Program, last: Last) -> None:
        self.program, self.graph_module = program, program.graph_module
        self.analysis = program.analysis
        self.names = canonical_names(self.graph_module)
        self.probe = Flow(self.graph_module, self.analysis.rules)
        self.orders: dict[fx.Node, Any] = {}
        self.uses: dict[tuple[str, int], np.ndarray | None] = {}
        self.constants: Counter[str] = Counter()
        self.pads: dict[str, tuple[int, int, int]] = {}
        self.places = Places(program, last)

    def run(self) -> Reordering:
        for node in self.program.graph.nodes:
            self.orders[node] = self._visit(node)
        self._check_constants()
        positions: dict[str, dict[int, np.ndarray]] = {}
        for (tensor, axis), index in self.uses.items():
            if index is not None:
                positions.setdefault(tensor, {})[axis] = index
        return Reordering(positions, self.pads)

    # Nodes.

    def _visit(self, node: fx.Node) -> Any:
        if node.op in ("placeholder", "get_attr"):
            return None
        given = [self.orders[source] for source in node.all_input_nodes]
        if node.op == "output":
            if any(order is not None for order in given):
                raise _Stop(node, "its channels are an output of the network, in this order")
            return None
        if node.op == "call_module":
            return self._layer(node, self.graph_module.get_submodule(str(node.target)), given[0])
        return self._function(
            node, [source for source, order in zip(node.all_input_nodes, given, strict=True) if order]
        )

    def _layer(self, node: fx.Node, layer: nn.Module, order: Order | None) -> Order | None:
        if isinstance(layer, _ConvNd):
            return self._convolution(node, layer, order)
        if isinstance(layer, nn.Linear):
            return self._linear(node, layer, order)
        if isinstance(layer, _DropoutNd | nn.Identity):
            return order
        axes: Sequence[int] = ()
        if isinstance(layer, _NormBase):
            shape = shape_of(node)
            axes = (1 if len(shape) > 1 and shape[1] == layer.num_features else 0,)
        elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            rank = len(shape_of(node))
            axes = range(rank - len(layer.normalized_shape), rank)  # type: ignore[arg-type]
        elif order is not None:
            raise _Stop(node, f"a {type(layer).__name__} reads its channels in this order")
        if len(axes) > 1 and order is not None and order.axis in axes:
            raise _Stop(node, f"a {type(layer).__name__} normalises its channels together with other axes")
        index = order.index if order is not None and order.axis in axes else None
        for tensor in layer.state_dict(keep_vars=True).values():
            if tensor.ndim:
                self._use(node, tensor, 0, index)
        return order

    def _convolution(self, node: fx.Node, layer: _ConvNd, order: Order | None) -> Order | None:
        transposed = isinstance(layer, _ConvTransposeNd)
        in_axis, out_axis = (0, 1) if transposed else (1, 0)
        channel = len(shape_of(node)) - len(layer.kernel_size) - 1
        if order is not None and order.axis != channel:
            raise _Stop(node, "a convolution runs over its channels")
        index = order.index if order is not None else None
        if is_depthwise(layer):
            times = layer.out_channels // layer.groups
            out = None if index is None else (index[:, None] * times + np.arange(times)).reshape(-1)
            self._use(node, layer.weight, 0, index if transposed else out)
        else:
            out = self.places.outputs(self.names[id(layer.weight)], layer.weight, out_axis)
            if layer.groups > 1 and (index is not None or out is not None):
                raise _Stop(node, "a grouped convolution ties its channels to their places")
            self._use(node, layer.weight, in_axis, index)
            self._use(node, layer.weight, out_axis, out)
        self._use(node, layer.bias, 0, out)
        return None if out is None else Order(channel, out)

    def _linear(self, node: fx.Node, layer: nn.Linear, order: Order | None) -> Order | None:
        last = len(shape_of(node)) - 1
        out = self.places.outputs(self.names[id(layer.weight)], layer.weight, 0)
        if order is not None and order.axis != last and out is not None:
            raise _Stop(node, "a linear layer runs beside its channels and computes others")
        self._use(node, layer.weight, 1, order.index if order is not None and order.axis == last else None)
        self._use(node, layer.weight, 0, out)
        self._use(node, layer.bias, 0, out)
        if order is not None and order.axis != last:
            return order
        return None if out is None else Order(last, out)

    def _use(self, node: fx.Node, tensor: Tensor | None, axis: int, index: np.ndarray | None) -> None:
        """Records the order of one axis of a tensor; all layers that share it must agree."""
        if tensor is None:
            return
        key = (self.names[id(tensor)], axis)
        before = self.uses.setdefault(key, index)
        if before is not index and not (before is not None and index is not None and (before == index).all()):
            raise _Stop(node, "its weights are shared by layers that would need them in different orders")

    # Operations.

    def _function(self, node: fx.Node, ordered: list[fx.Node]) -> Any:
        rule = find_rule(self.analysis.rules, node, None)
        flow = rule.flow if rule is not None else None
        if flow is flow_pad and self.places.padding(node) is not None:
            return self._pad(node, ordered)
        if not ordered:
            return None
        if flow is None:
            raise _Stop(node, f"no rule for {op_name_of(self.probe, node)}")
        if flow is flow_cat:
            return self._cat(node)
        if op_name_of(self.probe, node) == "_operator.getitem":
            return self.orders[ordered[0]][node.args[1]]
        operands = [source for source in node.all_input_nodes if is_tensor(source)]
        if len(operands) > 1 and (flow is flow_pointwise or "other" in arguments(node)):
            return self._pointwise(node, operands)
        if len(ordered) > 1 or isinstance(self.orders[ordered[0]], tuple):
            raise _Stop(node, f"{op_name_of(self.probe, node)} joins channels in a new order")
        return self._movement(node, ordered[0], flow)

    def _cat(self, node: fx.Node) -> Order:
        axis = arguments(node)["dim"] % len(shape_of(node))
        parts = [p for p in arguments(node)["tensors"] if len(shape_of(p)) == len(shape_of(node))]
        orders = [self.orders[part] for part in parts]
        if all(order is None or order.axis == axis for order in orders):
            index, start = [], 0
            for part, order in zip(parts, orders, strict=True):
                size = shape_of(part)[axis]
                index.append(start + (np.arange(size) if order is None else order.index))
                start += size
            return Order(axis, np.concatenate(index))
        return self._same(node, orders)

    def _same(self, node: fx.Node, orders: Sequence[Order | None]) -> Order:
        first = orders[0]
        for order in orders:
            if first is None or order is None or order.axis != first.axis or (order.index != first.index).any():
                raise _Stop(node, f"{op_name_of(self.probe, node)} joins channels of different orders")
        assert first is not None
        return first

    def _pointwise(self, node: fx.Node, operands: list[fx.Node]) -> Order:
        """All operands in the same order, broadcast against each other; free parameters are permuted."""
        rank = len(shape_of(node))
        aligned = {}
        for source in operands:
            order = self.orders[source]
            if order is not None:
                aligned[source] = Order(order.axis + rank - len(shape_of(source)), order.index)
        found = self._same(node, list(aligned.values()))
        for source in operands:
            axis = found.axis - rank + len(shape_of(source))
            if source in aligned or axis < 0 or shape_of(source)[axis] == 1:
                continue
            if source.op != "get_attr":
                raise _Stop(node, f"{op_name_of(self.probe, node)} joins channels of different orders")
            tensor = attribute_of(self.graph_module, str(source.target))
            self._use(node, tensor, axis, found.index)
            self.constants[self.names[id(tensor)]] += 1
        return found

    def _check_constants(self) -> None:
        """A free parameter may be permuted only if every reader expects that."""
        permuted = {tensor for (tensor, _), index in self.uses.items() if index is not None}
        readers: dict[str, list[fx.Node]] = {}
        for node in self.program.graph.find_nodes(op="get_attr"):
            name = self.names.get(id(attribute_of(self.graph_module, str(node.target))), "")
            readers.setdefault(name, []).extend(node.users)
        for tensor in permuted & readers.keys():
            if len(readers[tensor]) != self.constants[tensor]:
                reason = "a parameter that goes with its channels is read elsewhere in another order"
                raise _Stop(readers[tensor][0], reason)

    def _pad(self, node: fx.Node, ordered: list[fx.Node]) -> Order | None:
        """Added channels that are kept lie in front, those that come last behind; the others stay between them."""
        padded = self.places.padding(node)
        assert padded is not None
        axis, front, back = padded
        order = self.orders[ordered[0]] if ordered else None
        size = shape_of(node)[axis]
        inner = np.arange(front, size - back)
        if order is not None:
            if order.axis != axis:
                raise _Stop(node, "it pads another axis than that of its channels")
            inner = front + order.index
        wanted = self.places.along(node, axis)
        if wanted is None and order is None:
            return None
        index = np.arange(size) if wanted is None else wanted
        start = int(np.flatnonzero(index == inner[0])[0])
        if (index[start : start + len(inner)] != inner).any():
            raise _Stop(node, "a padding ties its channels to their places")
        self.pads[node.name] = (axis, start, size - start - len(inner))
        return None if wanted is None else Order(axis, wanted)

    def _movement(self, node: fx.Node, source: fx.Node, flow: Any) -> Any:
        """The order behind an operation on one value, found by running its rule on the positions."""
        order = self.orders[source]
        size = len(order.index)
        self.probe.values = {other: unlabelled(other) for other in node.all_input_nodes}
        self.probe.values[source] = Labels.on_axis(shape_of(source), order.axis, torch.arange(1, size + 1))
        recorded = (self.probe.edges, self.probe.freezes, self.probe.uses)
        for record in recorded:
            record.clear()
        try:
            out = flow(self.probe, node)
        except KeyError:  # the rule asks for a value that the probe does not have
            out = None
        if any(recorded):
            raise _Stop(node, f"{op_name_of(self.probe, node)} ties its channels to their places")
        if isinstance(out, tuple):
            return tuple(self._behind(node, part, order) for part in out)
        if out is None and not is_tensor(node):
            return None  # sizes and checks do not see an order
        return self._behind(node, out, order)

    def _behind(self, node: fx.Node, labels: Labels | None, order: Order) -> Order | None:
        """The order of a value whose labels are the old positions (from 1) in the value before."""
        if labels is None or not labels.labelled or len(labels.axes) > 1:
            raise _Stop(node, f"{op_name_of(self.probe, node)} takes its channels by their places")
        axis = labels.axes[0] if labels.axes else 0
        taken = labels.along(axis).numpy() - 1
        copy = _occurrences(taken)
        place = {pair: position for position, pair in enumerate(zip(taken.tolist(), copy.tolist(), strict=True))}
        moved = zip(order.index[taken].tolist(), copy.tolist(), strict=True)
        index = np.array([place.get(pair, -1) for pair in moved])
        if (taken < 0).any() or (index < 0).any():
            raise _Stop(node, f"{op_name_of(self.probe, node)} takes its channels by their places")
        return None if (np.diff(index) == 1).all() else Order(axis, index)


def _occurrences(values: np.ndarray) -> np.ndarray:
    """How often each value appeared before, at every position."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    count = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    out = np.empty_like(count)
    out[order] = count
    return out
