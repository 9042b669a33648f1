"""Where the samples of a batch lie in a value: on which axis, and how they alternate with other positions there.

Found by experiment: the network runs on a few random samples, then again with one of them changed; the positions that
change are that sample's. So every layout is seen as it is, (B, C, H, W), (T, B, C), (B T, C), (T B, C) or the windows
of an image, and a value in which one sample touches the positions of another is told apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ..errors import Refused
from .labels.flow import where_of
from .program import Program
from .shapes import batch_size, eval_mode, flatten_inputs, resize_batch

_SAMPLES = 3
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class SampleAxis:
    """The axis of a value that holds the samples; on it lie `outer * samples * inner` positions, row-major.

    Attributes:
        axis: Counted from the front.
        outer: Positions that are slower than the samples (the T of (T B, C)).
        inner: Positions that are faster than the samples (the T of (B T, C)).
    """

    axis: int
    outer: int = 1
    inner: int = 1

    def split(self, x: Tensor, samples: int) -> Tensor:
        """`x` as [samples, positions, ...]: the samples on axis 0, the other positions of their axis on axis 1."""
        outer, inner = self._factors(x.shape[self.axis], samples)
        parts = x.unflatten(self.axis, (outer, samples, inner)).movedim(self.axis + 1, 0)
        return parts.flatten(self.axis + 1, self.axis + 2).movedim(self.axis + 1, 1)

    def join(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
        """One value of all samples, from values of some samples each."""
        unmerged = []
        for part, samples in zip(parts, sizes, strict=True):
            outer, inner = self._factors(part.shape[self.axis], samples)
            unmerged.append(part.unflatten(self.axis, (outer, samples, inner)))
        return torch.cat(unmerged, self.axis + 1).flatten(self.axis, self.axis + 2)

    def spread(self, factor: Tensor, shape: torch.Size, channel: int) -> Tensor:
        """Factors [samples, channels] in a form that broadcasts against a value of this shape.

        Args:
            factor: One factor for every sample and channel.
            shape: Shape of the value.
            channel: Its axis of channels, counted from the front.
        """
        samples, channels = factor.shape
        outer, inner = self._factors(shape[self.axis], samples)
        if outer * inner > 1:
            factor = factor[None, :, None].expand(outer, samples, inner, channels).reshape(-1, channels)
        sizes = [1] * len(shape)
        sizes[self.axis], sizes[channel] = factor.shape
        return (factor if self.axis < channel else factor.t()).reshape(sizes)

    def _factors(self, size: int, samples: int) -> tuple[int, int]:
        """Outer and inner positions at this size; an axis of one kind may be longer than in the examples."""
        if self.outer == 1:
            return 1, size // samples
        return size // (samples * self.inner), self.inner


def sample_axes(program: Program, nodes: Iterable[fx.Node]) -> dict[fx.Node, SampleAxis | Refused]:
    """Finds where the samples lie in the values of some nodes.

    The network runs four times on three random samples (at the batch of the examples if that is fixed); weights and
    the random state of torch stay as they are.

    Args:
        program: The network.
        nodes: Nodes of its graph with one tensor each.

    Returns:
        For every node the axis, or why there is none.
    """
    watched = list(nodes)
    fixed = program.static_batch is not None
    count = batch_size(program.example_args, program.example_kwargs) or 1 if fixed else _SAMPLES
    if count == 1:
        return {node: SampleAxis(0) for node in watched}
    # Where a network does not run on other integers, or floats, they stay: lengths, positions, masks that must fit.
    for kinds in (("integer", "float"), ("float",)):
        try:
            return _experiment(program, watched, count, kinds)
        except (RuntimeError, IndexError, ValueError):
            continue
    return _experiment(program, watched, count, ())


def _experiment(
    program: Program, watched: Sequence[fx.Node], count: int, kinds: Sequence[str]
) -> dict[fx.Node, SampleAxis | Refused]:
    """Runs the network on `count` samples, changing values of these kinds."""
    args, kwargs = program.example_args, program.example_kwargs
    fixed = program.static_batch is not None
    generator = torch.Generator().manual_seed(0)
    first = _randomised(*(args, kwargs) if fixed else resize_batch(args, kwargs, count), generator, kinds)
    second = _randomised(*first, generator, kinds)
    base = _values(program, watched, first)
    changed: list[dict[fx.Node, Tensor]] = []
    for sample in range(2):
        other = _values(program, watched, _with_sample(first, second, sample))
        changed.append({node: _differs(base[node], other[node]) for node in watched})
    fewer = None if fixed else _values(program, watched, resize_batch(*first, count - 1))
    return {
        node: _layout(
            node, base[node].shape, None if fewer is None else fewer[node].shape, [c[node] for c in changed], count
        )
        for node in watched
    }


def _layout(
    node: fx.Node, shape: torch.Size, smaller: torch.Size | None, changed: Sequence[Tensor], count: int
) -> SampleAxis | Refused:
    """The layout in which the first samples changed nothing but their own positions.

    Args:
        node: The node.
        shape: Shape of its value with `count` samples.
        smaller: Its shape with one sample less; None if the batch is fixed.
        changed: For each of the first samples, which elements changed with it, bool of `shape`.
        count: Number of samples.
    """
    axes = [a for a, size in enumerate(shape) if size % count == 0 and size > 0]
    if smaller is not None:
        axes = [a for a in axes if shape[a] // count * (count - 1) == smaller[a]]
    evident = all(bool(c.any()) for c in changed)
    possible: list[tuple[SampleAxis, bool]] = []
    for axis in axes:
        others = [a for a in range(len(shape)) if a != axis]
        touched = [c.any(others) if others else c for c in changed]
        positions = torch.arange(shape[axis])
        for inner in _divisors(shape[axis] // count):
            owner = positions // inner % count
            own = [owner == sample for sample in range(len(touched))]
            if any(bool((t & ~o).any()) for t, o in zip(touched, own, strict=True)):
                continue
            exact = all(torch.equal(t, o) for t, o in zip(touched, own, strict=True))
            possible.append((SampleAxis(axis, shape[axis] // count // inner, inner), exact))
    where = where_of(node) or node.name
    if not possible:
        reason = "it mixes the samples of a batch" if evident else "it is the same for every sample of a batch"
        return Refused(reason, where, "rank by a method that needs no gradients of single samples, such as hap")
    certain = [layout for layout, exact in possible if exact] or [layout for layout, _ in possible]
    if len(certain) > 1 or (smaller is None and not evident):
        return Refused("its samples cannot be told apart", where, "capture with example inputs from the data")
    return certain[0]


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _differs(a: Tensor, b: Tensor) -> Tensor:
    """Which elements differ by more than rounding, bool of their shape, on the CPU."""
    if not a.is_floating_point():
        return (a != b).cpu()
    scale = a.detach().abs().nan_to_num(0, 0, 0).amax() if a.numel() else 0
    same = (a == b) | ((a - b).abs() <= _TOLERANCE * scale) | (a.isnan() & b.isnan())
    return ~same.cpu()


class _Watcher(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes as they were when computed."""

    def __init__(self, graph_module: fx.GraphModule, watched: Sequence[fx.Node]) -> None:
        super().__init__(graph_module)
        self.watched = frozenset(watched)
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Evaluates a node."""
        value = super().run_node(n)
        if n in self.watched:
            self.values[n] = value.clone()
        return value


def _values(
    program: Program, watched: Sequence[fx.Node], inputs: tuple[tuple[Any, ...], Mapping[str, Any]]
) -> dict[fx.Node, Tensor]:
    watcher = _Watcher(program.graph_module, watched)
    device = next((p.device for p in program.graph_module.parameters()), None)
    inputs = pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
    with eval_mode(program.graph_module), torch.no_grad():
        watcher.run(*flatten_inputs(program.graph_module, *inputs), enable_io_processing=False)
    return watcher.values


def _randomised(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], generator: torch.Generator, kinds: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Other values of the same kind: noise on floats, integers from the range they have; masks stay."""
    count = batch_size(args, kwargs)

    def randomise(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != count or leaf.dtype == torch.bool:
            return leaf
        if ("float" if leaf.is_floating_point() else "integer") not in kinds or leaf.is_complex():
            return leaf
        if leaf.is_floating_point():
            finite = leaf[leaf.isfinite()].double()
            scale = float(finite.std()) if finite.numel() > 1 else 0.0
            noise = torch.randn(leaf.shape, generator=generator) * (scale or 1.0)
            return leaf + noise.to(leaf.device, leaf.dtype)
        return _other_integers(leaf, generator) if leaf.numel() else leaf

    return pytree.tree_map(randomise, (tuple(args), dict(kwargs)))


def _other_integers(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """Every integer replaced by another one of the range; all the same ones by one less (zeros: by one)."""
    low, high = int(leaf.min()), int(leaf.max())
    if low == high:
        low, high = (high - 1, high) if high > 0 else (low, low + 1)
    span = high - low + 1
    step = torch.randint(1, span, leaf.shape, generator=generator).to(leaf.device)
    return (low + (leaf.long() - low + step) % span).to(leaf.dtype)


def _with_sample(first: Any, second: Any, sample: int) -> Any:
    """The first inputs, with one sample of the second."""
    count = batch_size(*first)

    def take(a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor) or a.ndim == 0 or a.shape[0] != count:
            return a
        mixed = a.clone()
        mixed[sample] = b[sample]
        return mixed

    return pytree.tree_map(take, first, second)
