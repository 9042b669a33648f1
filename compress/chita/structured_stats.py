"""What the quadratic model of removing units is made of: one pass over the data, forwards and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UserError
from ...passes.labels.groups import Role
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..heal.lockstep import Lockstep
from ..heal.refit import Layer, Pick, patches
from ..heal.ridge import refittable
from ..heal.tail import tail_of
from ..sensitivity.batches import Batch
from ..sensitivity.gate_jacobian import GateNetwork, Pull, gate_network, visit_batches
from ..sensitivity.output_draws import drawn_root
from ..sensitivity.output_hessian import OutputLoss, Root
from ..sensitivity.request import Request
from .structured_model import Part

_PLACES_PER_COLUMN = 64
"""Places (pixels of all samples) whose inputs are summed for every column of a moment matrix."""

_MOST_COLUMNS = 8192
"""A layer with more columns is modelled by its gates: its moment matrix would take 512 MiB and more."""


@dataclass
class LayerMoments:
    """What was seen at one layer.

    Attributes:
        path: Its module path.
        layer: The layer.
        units: int64 [columns]: the unit of each column of its flattened weight (and bias), -1 for none.
        moments: float64 [columns, columns]: sum of x xᵀ over the places that were drawn.
        scale: float64 [channels], of the batch norm behind it.
        power: Variance of what its output becomes part of, summed over channels.
        places: How many.
        curvature: float64 [channels]: Σ over places of the squared derivatives in its outputs, summed over samples.
    """

    path: str
    layer: Layer
    units: np.ndarray
    moments: Tensor
    curvature: Tensor
    scale: Tensor
    power: float = 0.0
    places: int = 0
    _gradient: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Statistics:
    """What the models are built from.

    Attributes:
        gates: float64 [units, units]: ½ · the Gauss-Newton matrix of the loss in the gates.
        layers: Layers that read units and can be solved for.
        samples: Samples that were read.
        loss: Mean loss.
    """

    gates: np.ndarray
    layers: tuple[LayerMoments, ...]
    samples: int
    loss: float


def collect(request: Request, *, draws: int = 2) -> Statistics:
    """Runs the data through the network, with gates, and back.

    The Gauss-Newton matrix needs vectors whose products have the Hessian of the loss in the outputs as their mean; a
    few a sample are drawn, since selections sum over many units and samples.

    Args:
        request: The network, data and loss; units are those of `request.groups`, in order.
        draws: Vectors a sample.

    Raises:
        UserError: Data, weights or loss cannot be used.
        UnsupportedError: The network mixes the samples of a batch.
    """
    if not request.groups:
        raise UserError("no unit of this network can be removed", where="plan", hint="secateur inspect shows why")
    with gate_network(request) as network:
        seen = _seen_layers(request)
        watch = _Watch(network, seen, request.seed, draws)
        units, losses = len(network.columns), 0.0
        gates = torch.zeros(units, units, dtype=torch.float64)
        with watch.hooked():
            for visit in visit_batches(network, watch.prepare, watch.run):
                left, right = (part.flatten(0, 1).double() for part in visit.found)
                product = (left.T @ right).cpu()
                gates += (product + product.T) / 4
                losses += visit.loss * len(left) / max(draws, 1)
        _measure_power(request.program, network.batches, seen)
    samples = int(network.sizes.sum())
    return Statistics((gates / samples).numpy(), tuple(seen), samples, losses / samples)


def gate_part(statistics: Statistics, ridge: float, units: np.ndarray | None = None) -> Part:
    """CHITA's regression in the gates: all of them, or those of some units."""
    units = np.arange(len(statistics.gates)) if units is None else units
    moments = statistics.gates[np.ix_(units, units)]
    return Part(np.ones((1, len(units))), _with_ridge(moments, ridge), units.astype(np.int64))


def relative_parts(statistics: Statistics, ridge: float) -> list[Part]:
    """The reconstruction of every layer as a share of the variance of what its output becomes part of.

    What a layer's output becomes part of is its batch norm, and the sum with a skip connection. A share counts the same
    in every layer: as the layers behind are refitted to what they then read, an early error is made up for at least as
    well as a late one, which derivatives at the network as it is do not know. Units that no such layer reads are
    modelled by their gates, in the same proportion.
    """
    parts, covered, ratio = [], [np.zeros(0, dtype=np.int64)], []
    for seen in statistics.layers:
        part = _layer_part(seen, statistics.samples, ridge, seen.scale / max(seen.power, 1e-30) ** 0.5)
        present = np.unique(part.units[part.units >= 0])
        own = np.diag(statistics.gates)[present].sum()
        ratio.append(sum(_alone(part, unit) for unit in present) / own if own > 0.0 else 0.0)
        covered.append(present)
        parts.append(part)
    rest = np.setdiff1d(np.arange(len(statistics.gates)), np.concatenate(covered))
    if len(rest):
        part = gate_part(statistics, ridge, rest)
        factor = float(np.median(ratio)) ** 0.5 if ratio else 1.0
        parts.append(Part(part.weights * factor, part.moments, part.units))
    return parts


def layer_parts(statistics: Statistics, ridge: float) -> list[Part]:
    """The reconstruction of every layer, weighed by what its error does to the loss.

    An output channel's squared error counts with the curvature of the loss in it, as if errors at different places were
    independent. They are not, so that every layer is scaled to agree with the Gauss-Newton matrix of the gates on the
    removal of single units without compensation. Units that no such layer reads are modelled by their gates.
    """
    parts, raw, covered = [], np.zeros(len(statistics.gates)), []
    for seen in statistics.layers:
        part = _layer_part(seen, statistics.samples, ridge)
        present = np.unique(part.units[part.units >= 0])
        alone = np.array([_alone(part, unit) for unit in present])
        raw[present] += alone
        covered.append(present)
        parts.append(part)
    scaled = []
    for part, present in zip(parts, covered, strict=True):
        whole = raw[present].sum()
        factor = np.diag(statistics.gates)[present].sum() / whole if whole > 0.0 else 0.0
        scaled.append(Part(part.weights * np.sqrt(max(factor, 0.0)), part.moments, part.units))
    rest = np.setdiff1d(np.arange(len(statistics.gates)), np.concatenate([np.zeros(0, dtype=np.int64), *covered]))
    return [*scaled, gate_part(statistics, ridge, rest)] if len(rest) else scaled


def _layer_part(seen: LayerMoments, samples: int, ridge: float, heights: Tensor | None = None) -> Part:
    weights = seen.layer.weight.detach().flatten(1).double().cpu()
    if seen.layer.bias is not None:
        weights = torch.cat([weights, seen.layer.bias.detach().double().cpu()[:, None]], 1)
    if heights is None:
        heights = (seen.curvature.cpu() / (2 * samples)).sqrt()
    moments = (seen.moments / max(seen.places, 1)).cpu().numpy()
    return Part((weights * heights[:, None]).numpy(), _with_ridge(moments, ridge), seen.units)


def _alone(part: Part, unit: int) -> float:
    """What removing a unit does if nothing makes up for it."""
    k = np.flatnonzero(part.units == unit)
    return float(np.einsum("rc,cd,rd->", part.weights[:, k], part.moments[np.ix_(k, k)], part.weights[:, k]))


def _with_ridge(moments: np.ndarray, ridge: float) -> np.ndarray:
    mean = float(np.diag(moments).mean()) if len(moments) else 0.0
    return moments + max(ridge * mean, 1e-12) * np.eye(len(moments))


def _seen_layers(request: Request) -> list[LayerMoments]:
    """The layers that read units and can be solved for, with the unit of every column."""
    first = dict(
        zip((g.name for g in request.groups), np.cumsum([0, *(g.width for g in request.groups)]), strict=False)
    )
    reads: dict[str, list[tuple[int, np.ndarray]]] = {}
    for group in request.groups:
        for member in group.members:
            path, _, name = member.tensor.rpartition(".")
            if name == "weight" and member.axis == 1 and member.role is Role.CONSUME:
                reads.setdefault(path, []).append((int(first[group.name]), member.index))
    found = []
    for node in request.program.graph.nodes:
        path = str(node.target)
        if path not in reads or not refittable(request.program, node):
            continue
        layer = request.program.graph_module.get_submodule(path)
        assert isinstance(layer, Layer)
        inputs = layer.weight.shape[1]
        of_input = np.full(inputs, -1, dtype=np.int64)
        for start, index in reads[path]:
            of_input[index] = start + np.arange(len(index))[:, None]
        units = np.repeat(of_input, layer.weight[0, 0].numel())
        if layer.bias is not None:
            units = np.append(units, -1)
        if len(units) <= _MOST_COLUMNS:
            device = layer.weight.device
            moments = torch.zeros(len(units), len(units), dtype=torch.float64, device=device)
            curvature = torch.zeros(len(layer.weight), dtype=torch.float64, device=device)
            found.append(LayerMoments(path, layer, units, moments, curvature, tail_of(request.program, node).scale))
    return found


def _measure_power(program: Program, batches: Sequence[Batch], layers: Sequence[LayerMoments]) -> None:
    """Fills in the variance of what the outputs of layers become part of, over samples and places."""
    ends: dict[str, list[LayerMoments]] = {}
    for node in program.graph.nodes:
        for seen in layers:
            if str(node.target) == seen.path:
                ends.setdefault(tail_of(program, node).end, []).append(seen)
    with eval_mode(program.module()), torch.no_grad():
        for batch in batches:
            for name, value in Lockstep(program, [batch], {}).values(ends):
                for seen in ends[name]:
                    axis = -1 if isinstance(seen.layer, nn.Linear) else 1
                    channels = value.movedim(axis, 0).flatten(1).double()
                    seen.power += float(channels.var(1, correction=0).sum()) / len(batches)


class _Watch:
    """Reads the inputs of layers on the way forwards, and the derivatives in their outputs on the way back."""

    def __init__(self, network: GateNetwork, layers: list[LayerMoments], seed: int, draws: int) -> None:
        self._network, self._layers, self._draws = network, layers, draws
        self._seed, self._samples = seed, int(network.sizes.sum())
        self._generator = torch.Generator().manual_seed(seed)

    def prepare(self, out: OutputLoss, number: int) -> Root:
        """The vectors of a batch."""
        state = np.random.SeedSequence([self._seed, number]).generate_state(1, np.uint64)[0]
        return drawn_root(out, self._draws, int(state >> 2))

    def run(self, pull: Pull, root: Root, rows: slice) -> tuple[Tensor, Tensor]:
        """Products in the gates, [vectors, samples, units] on both sides of the matrix."""
        lefts, rights = [], []
        for number in range(root.count):
            pair = root.pair(number)
            weight = pair.weight[rows]
            lefts.append(pull(pair.left[rows]))
            first = [layer._gradient for layer in self._layers]
            rights.append((lefts[-1] if pair.right is None else pull(pair.right[rows])) * weight)
            for layer, gradient in zip(self._layers, first, strict=True):
                if gradient is None or layer._gradient is None:
                    continue
                square = gradient * layer._gradient
                axis = -1 if isinstance(layer.layer, nn.Linear) else 1
                by_sample = square.movedim(axis, -1).reshape(len(weight), -1, square.shape[axis]).sum(1)
                layer.curvature += (by_sample.double() * weight.double()).sum(0).clamp_min(0.0)
        return torch.stack(lefts), torch.stack(rights)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Watches the layers while it lasts."""
        handles = [layer.layer.register_forward_hook(self._reader(layer)) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _reader(self, seen: LayerMoments) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def read(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not output.requires_grad:
                return  # only the size of the outputs was asked for

            def keep(gradient: Tensor) -> None:
                seen._gradient = gradient

            output.register_hook(keep)
            with torch.no_grad():
                x = inputs[0].detach()
                axis = -1 if isinstance(seen.layer, nn.Linear) else 1
                places = output.numel() // output.shape[axis] // len(x) * self._samples
                share = min(1.0, _PLACES_PER_COLUMN * len(seen.units) / max(places, 1))
                pick = Pick.draw(seen.layer, x, output, share, self._generator)
                rows = patches(seen.layer, x, pick)
                seen.moments += (rows.T @ rows).double()
                seen.places += len(rows)

        return read
