"""Cost: parameters and multiply-accumulates, counted, and as a function of the widths of the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree as pytree

from ...passes.blocks import Block
from ...passes.labels.flow import canonical_names, shape_of
from ...passes.program import Program
from .axes import Axis, AxisReader, varies
from .terms import Column, Term, product_term


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        params: Number of parameters, shared ones once; batch norm's weight and bias count, its statistics do not.
        macs: Multiply-accumulates of convolutions and linear layers for one sample of the example's size.
    """

    params: int
    macs: int


def count(program: Program) -> Cost:
    """Counts the parameters and multiply-accumulates of a program as it is."""
    params = sum(parameter.numel() for parameter in program.graph_module.parameters())
    macs = sum(prod(layer.positions) * layer.weight.numel() for layer in _layers(program))
    return Cost(params, macs // _batch_size(program))


@dataclass(frozen=True)
class _Layer:
    """One use of a multiplying layer: each element of its weight is used once at every position.

    Attributes:
        weight: The weight.
        call: Name of the node that calls the layer.
        node: The node at whose value the positions lie.
        positions: Axis sizes of that value, 1 for the axis of channels; the batch axis is among them.
    """

    weight: Tensor
    call: str
    node: fx.Node
    positions: tuple[int, ...]


@dataclass(frozen=True)
class CostModel:
    """Cost as a function of group widths, without rewriting anything.

    The size of a tensor's axis is a constant plus, for each group that lies on it, width × multiplicity. Parameters
    are sums of products of axis sizes, and so are multiply-accumulates.

    Attributes:
        groups: Names of the groups, in the program's order.
        widths: int64 [groups]: their full widths.
        fixed: int64 [axes]: constant part of each distinct axis size; axis 0 is the constant 1.
        slope: int64 [axes, groups]: multiplicities.
        terms: int64 [terms, factors]: axes whose sizes are multiplied, padded with axis 0.
        params: int64 [terms]: how often each term counts as parameters.
        macs: int64 [terms]: how often each term counts as multiply-accumulates of the example batch.
        batch: Samples in the example batch.
    """

    groups: tuple[str, ...]
    widths: np.ndarray
    fixed: np.ndarray
    slope: np.ndarray
    terms: np.ndarray
    params: np.ndarray
    macs: np.ndarray
    batch: int

    @staticmethod
    def of(program: Program, only: Block | None = None) -> CostModel:
        """The cost model of a program, or of one of its residual blocks: what is saved if that is dropped."""
        return _Builder(program).build(only)

    @property
    def dense(self) -> Cost:
        """Cost at full width."""
        return self.cost({})

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """Exact cost at the given widths.

        Args:
            widths: Kept units by group name; groups that are missing keep all.

        Raises:
            KeyError: There is no group of this name.
        """
        row = self.widths.copy()
        for name, width in widths.items():
            row[self._position[name]] = width
        params, macs = self.costs(row[None])[0]
        return Cost(int(params), int(macs))

    def costs(self, widths: np.ndarray) -> np.ndarray:
        """Costs of many choices at once.

        Args:
            widths: int64 [choices, groups], groups in the order of `groups`.

        Returns:
            int64 [choices, 2]: parameters and multiply-accumulates.
        """
        sizes = self.fixed + widths @ self.slope.T
        products = sizes[:, self.terms].prod(axis=2)
        return np.stack([products @ self.params, products @ self.macs // self.batch], axis=1)

    def columns(self) -> dict[str, Column]:
        """The two costs as sums of terms."""
        found: dict[str, list[Term]] = {"params": [], "macs": []}
        for row, params, macs in zip(self.terms, self.params, self.macs, strict=True):
            axes = [(int(self.fixed[i]), tuple(self.slope[i].tolist())) for i in row if i]
            for name, count in (("params", int(params)), ("macs", int(macs) / self.batch)):
                if count:
                    found[name].append(product_term(axes, count))
        return {name: Column(name, tuple(terms)) for name, terms in found.items()}

    @property
    def _position(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.groups)}


class _Builder:
    """Collects distinct axis sizes and products of them."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.reader = AxisReader(program)
        self.groups = self.reader.groups
        self.axes: dict[Axis, int] = {self.reader.fixed: 0}
        self.terms: dict[tuple[int, ...], list[int]] = {}

    def build(self, only: Block | None) -> CostModel:
        names = canonical_names(self.program.graph_module)
        for parameter in self.program.graph_module.parameters():
            if only is None or names[id(parameter)] in only.tensors:
                self._add(self.reader.tensor(parameter), params=1)
        for layer in _layers(self.program):
            if only is not None and layer.call not in only.nodes:
                continue
            self._add([*self.reader.tensor(layer.weight), *self.reader.positions(layer.node, layer.positions)], macs=1)
        factors = max((len(term) for term in self.terms), default=1)
        terms = [term + (0,) * (factors - len(term)) for term in self.terms]
        counts = np.array(list(self.terms.values()), dtype=np.int64).reshape(-1, 2)
        return CostModel(
            groups=tuple(group.name for group in self.groups),
            widths=np.array([group.width for group in self.groups], dtype=np.int64),
            fixed=np.array([fixed for fixed, _ in self.axes], dtype=np.int64),
            slope=np.array([slope for _, slope in self.axes], dtype=np.int64).reshape(len(self.axes), len(self.groups)),
            terms=np.array(terms, dtype=np.int64).reshape(len(terms), factors),
            params=counts[:, 0],
            macs=counts[:, 1],
            batch=_batch_size(self.program),
        )

    def _add(self, sizes: Sequence[Axis], params: int = 0, macs: int = 0) -> None:
        """Adds a product of axis sizes: a constant times the sizes that depend on widths."""
        constant, term = 1, []
        for axis in sizes:
            if varies(axis):
                term.append(self.axes.setdefault(axis, len(self.axes)))
            else:
                constant *= axis[0]
        counts = self.terms.setdefault(tuple(sorted(term)), [0, 0])
        counts[0] += params * constant
        counts[1] += macs * constant


def _layers(program: Program) -> list[_Layer]:
    """Every use of a convolution or linear layer."""
    found = []
    for node in program.graph.nodes:
        if node.op != "call_module":
            continue
        module = program.graph_module.get_submodule(str(node.target))
        if isinstance(module, nn.Linear):
            found.append(_Layer(module.weight, node.name, node, (*shape_of(node)[:-1], 1)))
        elif isinstance(module, _ConvNd):
            # Each element of a transposed kernel is used once for every input position, else for every output position.
            at = node.all_input_nodes[0] if isinstance(module, _ConvTransposeNd) else node
            shape = shape_of(at)
            channel = len(shape) - len(module.kernel_size) - 1
            found.append(_Layer(module.weight, node.name, at, (*shape[:channel], 1, *shape[channel + 1 :])))
    return found


def _batch_size(program: Program) -> int:
    """Samples in the example inputs."""
    leaves = pytree.tree_leaves((program.example_args, dict(program.example_kwargs)))
    return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0]), 1)
