"""Placement: which values of a program are put on an integer grid, decided before anything is changed.

The unit is the value (what a node computes), not the edge: a value carries at most one fake-quantiser, and integer
kernels that read it read the same codes. The rules are what runtimes fuse into integer kernels:

* a quantised layer reads a quantised value, and its result, after the ReLU that alone reads it, is quantised if the
  runtime's integer kernels write no floats (`QuantScheme.layer_outputs`);
* additions, products and concatenations of quantised values quantise all their operands and their result;
* movements (slice, zero pad, view, maximum) keep the grid of their input, averages and activations get their own;
* what follows the last convolution and has no spatial extent any more (global pool, classifier) stays float if the
  scheme says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ...errors import Refused
from ..program import Program
from .grid import QuantScheme
from .op_kinds import KEEPS_SIGN, NON_NEGATIVE, Kind, kind_of, layer_of, operation

QuantJournal = tuple[tuple[str, Refused], ...]
"""What stays float, by node name, with the reason."""


@dataclass(frozen=True)
class QuantValue:
    """A value that is put on a grid.

    Attributes:
        owner: The node whose quantiser it uses: itself, or the start of the movements that lead here.
        non_negative: It cannot be negative.
        readers: The nodes that read the quantised value; None for all of them.
        output_reads: The graph's output reads it too (it comes from an integer kernel), instead of the float value.
    """

    owner: fx.Node
    non_negative: bool
    readers: frozenset[fx.Node] | None
    output_reads: bool


@dataclass(frozen=True)
class Placement:
    """What of a program is quantised.

    Attributes:
        layers: Paths of the convolutions and linear layers with quantised weights.
        values: Quantised values by node, in the order of the graph.
        journal: What stays float and why.
    """

    layers: tuple[str, ...]
    values: Mapping[fx.Node, QuantValue]
    journal: QuantJournal


def place(program: Program, scheme: QuantScheme) -> Placement:
    """Decides what is quantised; changes nothing.

    Args:
        program: With batch norm folded (see `passes.fold`) and `meta["val"]` set.
        scheme: What the target wants.
    """
    return _Placer(program.graph, scheme).run()


class _Placer:
    """The decision for one graph."""

    def __init__(self, graph: fx.Graph, scheme: QuantScheme) -> None:
        self.nodes = list(graph.nodes)
        self.scheme = scheme
        self.layers = {node: layer for node in self.nodes if (layer := layer_of(node)) is not None}
        self.refused: dict[fx.Node, Refused] = {}
        self.leading = self.leads_to_layer()
        self.quantized = self.choose_layers()
        self.whole: set[fx.Node] = set()
        self.partial: dict[fx.Node, set[fx.Node]] = {}

    def run(self) -> Placement:
        for node in self.quantized:
            self.mark_layer(node)
        size = -1
        while size != len(self.whole):
            size = len(self.whole)
            for node in self.nodes:
                self.extend(node)
        layers = tuple(dict.fromkeys(str(node.target) for node in self.quantized))
        return Placement(layers, self.values(), self.journal())

    # What a layer may do.

    def leads_to_layer(self) -> set[fx.Node]:
        """Nodes that lead to a convolution or to a linear layer over an extent; all nodes if there is neither."""
        anchors = [
            node
            for node, layer in self.layers.items()
            if isinstance(layer, _ConvNd) or (isinstance(layer, nn.Linear) and _has_extent(node))
        ]
        return _ancestors(anchors) if anchors else set(self.nodes)

    def in_tail(self, node: fx.Node) -> bool:
        """Whether the node belongs to the part after the last convolution that stays float."""
        return self.scheme.float_tail and node not in self.leading and not _has_extent(node)

    def choose_layers(self) -> list[fx.Node]:
        """Calls of layers with quantised weights; a layer is left float everywhere if one of its calls must be."""
        candidates = [n for n, layer in self.layers.items() if isinstance(layer, _ConvNd | nn.Linear)]
        for node in candidates:
            reason = self.refusal(node)
            if reason is not None:
                self.refused[node] = reason
        barred = {node.target: reason for node, reason in self.refused.items()}
        for node in candidates:
            if node.target in barred:
                self.refused.setdefault(node, barred[node.target])
        return [node for node in candidates if node not in self.refused]

    def refusal(self, node: fx.Node) -> Refused | None:
        layer, where = self.layers[node], _where(node)
        if isinstance(layer, _ConvTransposeNd):
            return Refused("transposed convolutions have no integer kernel", where)
        if isinstance(layer, _ConvNd) and layer.padding_mode != "zeros":
            return Refused(f"padding mode {layer.padding_mode!r} has no integer kernel", where)
        if isinstance(layer, nn.Linear) and not self.scheme.quantize_linear:
            return Refused("the target's scheme leaves linear layers float", where)
        if isinstance(layer, nn.Linear) and self.in_tail(node):
            return Refused("it follows the last convolution: the target's scheme leaves the tail float", where)
        return None

    # Which values that makes integer.

    def mark_layer(self, node: fx.Node) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if isinstance(self.layers[node], nn.Linear):
            # Kernels of linear layers write floats, so other readers of the same value need not lose precision.
            self.partial.setdefault(source, set()).add(node)
            return
        self.whole.add(source)
        if self.scheme.layer_outputs:
            self.whole.add(self.fused(node))

    def fused(self, node: fx.Node) -> fx.Node:
        """The ReLU that alone reads a value, else the value itself."""
        readers = _readers(node)
        alone = len(readers) == 1 and kind_of(readers[0]) is Kind.RECTIFY
        return readers[0] if alone else node

    def extend(self, node: fx.Node) -> None:
        """Goes on with an operation on quantised values."""
        kind, sources = kind_of(node), _tensor_inputs(node)
        if kind is Kind.JOIN and self.scheme.add_inputs == "skip":
            self.whole.update(self.skip_edges(node, sources))
            return
        if not self.scheme.layer_outputs or self.in_tail(node) or not any(s in self.whole for s in sources):
            return
        if kind is Kind.JOIN and all(_is_float(s) for s in sources):
            self.whole.update(sources)
            self.whole.add(self.fused(node))
        elif kind in (Kind.MOVE, Kind.RECTIFY, Kind.UNARY, Kind.REDUCE):
            self.whole.add(node)

    def skip_edges(self, node: fx.Node, sources: list[fx.Node]) -> list[fx.Node]:
        """Operands of an addition that carry a quantiser if another one comes straight from an integer convolution."""
        if operation(node) != "add":
            return []
        # Kernels of linear layers do not take the addition in, and its other operand would lose precision for nothing.
        convs = [s for s in sources if s in self.quantized and isinstance(self.layers[s], _ConvNd)]
        straight = [s for s in convs if len(_readers(s)) == 1]
        if not straight:
            return []
        # Two convolutions: the deeper one is the residual branch, and it is the one that the addition is fused into.
        branch = max(straight, key=lambda s: len(_ancestors([s]) & set(self.quantized)))
        return [s for s in sources if s is not branch and _is_float(s)]

    # The answer.

    def values(self) -> dict[fx.Node, QuantValue]:
        non_negative = self.non_negative()
        owners: dict[fx.Node, fx.Node] = {}
        found: dict[fx.Node, QuantValue] = {}
        for node in self.nodes:
            if node not in self.whole and node not in self.partial:
                continue
            start = self.moved_from(node)
            owners[node] = node if start is None else owners[start]
            if not _is_float(node):
                continue
            readers = None if node in self.whole else frozenset(self.partial[node])
            from_kernel = node in self.quantized or kind_of(node) is not Kind.FLOAT
            found[node] = QuantValue(owners[node], node in non_negative, readers, from_kernel)
        return found

    def moved_from(self, node: fx.Node) -> fx.Node | None:
        """The quantised value whose codes a movement hands on, possibly through movements that carry no quantiser."""
        while kind_of(node) is Kind.MOVE and (sources := _tensor_inputs(node)):
            node = sources[0]
            if node in self.whole:
                return node
        return None

    def non_negative(self) -> set[fx.Node]:
        """Values that cannot be negative."""
        found: set[fx.Node] = set()
        for node in self.nodes:
            kind, name, sources = kind_of(node), operation(node), _tensor_inputs(node)
            inherits = kind in (Kind.MOVE, Kind.REDUCE) or (kind is Kind.JOIN and name in KEEPS_SIGN)
            if kind is Kind.RECTIFY or name in NON_NEGATIVE or (inherits and sources and found.issuperset(sources)):
                found.add(node)
        return found

    def journal(self) -> QuantJournal:
        entries = dict(self.refused)
        for node in self.nodes:
            if node.op not in ("call_function", "call_module") or node in self.quantized or not _is_float(node):
                continue
            touches = any(s in self.whole for s in _tensor_inputs(node))
            if isinstance(self.layers.get(node), _BatchNorm):
                entries.setdefault(node, Refused("batch norm that could not be folded runs in float", _where(node)))
            elif touches and kind_of(node) is Kind.FLOAT and node not in entries:
                name = operation(node) or type(self.layers[node]).__name__
                entries[node] = Refused(f"{name} has no integer kernel: runs in float between codes", _where(node))
        return tuple((node.name, entries[node]) for node in self.nodes if node in entries)


def _ancestors(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes and everything that they depend on."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Inputs that are tensors or lists of tensors; symbolic sizes are left out."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor | list | tuple)]


def _readers(node: fx.Node) -> list[fx.Node]:
    """Users that read the values, not only the sizes."""
    kept = (Tensor, list, tuple)
    return [user for user in node.users if user.op == "output" or isinstance(user.meta.get("val"), kept)]


def _has_extent(node: fx.Node) -> bool:
    """Whether a value has axes behind batch and channels that are longer than one."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 2 and any(int(size) > 1 for size in value.shape[2:])


def _where(node: fx.Node) -> str:
    parts = (str(node.meta.get("path") or node.target), str(node.meta.get("source") or ""))
    return ", ".join(part for part in parts if part)
