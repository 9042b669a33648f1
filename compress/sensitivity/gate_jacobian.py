"""Runs a gated network on batches and pulls vectors back from its outputs to the gates of every single sample."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...errors import EnvironmentLacksError, UserError
from ...passes.gates import Gated, insert_gates, refusal
from ...passes.sample_axis import SampleAxis
from ..data import out_of_memory, run_batch
from .batches import Batch, read_batches
from .hvp import differentiable, split_scores
from .output_hessian import OutputLoss, output_loss, rows_of
from .request import Request
from .shards import gather, my_share
from .table import Scores

_log = logging.getLogger(__name__)

Pull = Callable[[Tensor], Tensor]
"""Vectors in the outputs [samples, elements] to their products Jᵀv in the gates [samples, units]."""


@dataclass
class GateNetwork:
    """A network with gates of their own for every sample.

    Attributes:
        request: The question.
        gated: The network.
        columns: int64 [units]: the gates of the units that get a score, group by group.
        batches: The data, the same on every process.
        limit: Samples a chunk; None as long as every batch fits into memory.
        started: When the work began.
    """

    request: Request
    gated: Gated
    columns: Tensor
    batches: list[Batch]
    limit: int | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.columns.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return _precision(self.gated)

    @property
    def sizes(self) -> np.ndarray:
        """Samples of each batch, float64."""
        return np.array([batch.size for batch in self.batches], dtype=np.float64)

    def facts(self, mean_loss: float) -> dict[str, object]:
        """What the numbers were measured on."""
        cut = {} if self.limit is None else {"samples_a_chunk": self.limit}
        return {
            "samples": int(self.sizes.sum()),
            "batches": len(self.batches),
            "mean_loss": mean_loss,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "seconds": round(time.perf_counter() - self.started, 3),
            **cut,
        }


@dataclass(frozen=True)
class Visit:
    """What was computed of one batch.

    Attributes:
        number: Number of the batch.
        loss: Its mean loss.
        out: The loss in its outputs.
        found: What the work returned, for all samples of the batch.
    """

    number: int
    loss: float
    out: OutputLoss
    found: tuple[Tensor, ...]


@contextmanager
def gate_network(request: Request) -> Iterator[GateNetwork]:
    """Reads the data and puts gates into the network: evaluation mode, no gradients of weights, all of it undone after.

    Raises:
        UserError: There is no loss, no data, too few samples, or weights cannot be used.
        UnsupportedError: The network mixes the samples of a batch.
    """
    if request.loss is None:
        raise UserError(
            "this ranking method needs a loss", where="rank", hint="pass loss(output, target) -> mean over the batch"
        )
    for group in request.groups:
        for member in group.producers:
            request.tensor(member)
    gated = insert_gates(request.program)
    if gated.refused is not None:
        raise refusal(gated.refused)
    if _precision(gated) not in (torch.float32, torch.float64):
        raise UserError(
            f"weights are {str(_precision(gated)).removeprefix('torch.')}",
            where="rank",
            why="sums over small derivatives need single precision",
            hint="convert the model with model.float() before capture",
        )
    device = next((p.device for p in gated.module.parameters()), torch.device("cpu"))
    starts = [(gated.groups[group.name][0], group.width) for group in request.groups]
    columns = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(s, s + w) for s, w in starts)])
    batches = read_batches(request.loader, request.samples, request.program, device)
    if sum(batch.size for batch in batches) < 2:
        raise UserError(
            "one sample is too few",
            where="rank.samples",
            why="there is no standard error over a single sample",
            hint="read at least 2 samples",
        )
    network = GateNetwork(request, gated, torch.from_numpy(columns).to(device), batches)
    with differentiable(gated.module, []):
        try:
            yield network
        finally:
            gated.source.values = None


def visit_batches(
    network: GateNetwork,
    prepare: Callable[[OutputLoss, int], Any],
    work: Callable[[Pull, Any, slice], tuple[Tensor, ...]],
) -> Iterator[Visit]:
    """Visits this process's share of the batches; in smaller chunks of samples once memory has run out.

    Args:
        network: The network and the data.
        prepare: From the loss in the outputs of a batch, and its number, to what the work needs.
        work: From the pull, what was prepared, and the samples at hand to tensors with samples on axis -2.
    """
    mine = my_share(len(network.batches))
    for done, number in enumerate(mine, start=1):
        batch = network.batches[number]
        while True:
            try:
                out, found = _visit(network, batch, number, prepare, work)
                break
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                network.limit = _smaller(network, batch, error)
            # Outside of the handler, whose exception keeps the tensors of the failed attempt.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        yield Visit(number, out.value, out, found)
        if network.request.progress:
            network.request.progress(done, len(mine), loss=out.value)


def _smaller(network: GateNetwork, batch: Batch, error: Exception) -> int:
    """Half the samples a chunk; says so."""
    used = min(batch.size, network.limit or batch.size)
    static = network.request.program.static_batch
    if used == 1 or static is not None:
        raise EnvironmentLacksError(
            "memory does not suffice",
            where="rank",
            why=f"{used} samples at once; {static or 'a smaller chunk there is not'}",
            hint="rank by a method that needs no data, such as magnitude, or on a larger machine",
        ) from error
    _log.warning("out of memory with %d samples at once: going on with %d", used, (used + 1) // 2)
    return (used + 1) // 2


def _visit(
    network: GateNetwork, batch: Batch, number: int, prepare: Callable[..., Any], work: Callable[..., Any]
) -> tuple[OutputLoss, tuple[Tensor, ...]]:
    limit = network.limit or batch.size
    pieces = [slice(low, min(low + limit, batch.size)) for low in range(0, batch.size, limit)]
    whole = _run(network, batch) if len(pieces) == 1 else None
    if whole is not None:
        leaves, spec = whole.leaves, whole.spec
    else:
        leaves, spec = _outputs_in_pieces(network, batch, pieces)
    request = network.request
    assert request.loss is not None
    out = output_loss(
        request.loss, leaves, spec, network.gated.outputs, batch.target, batch.size, temperature=request.temperature
    )
    prepared = prepare(out, number)
    found = []
    for piece in pieces:
        run = whole if whole is not None else _run(network, _part(batch, piece))
        found.append(work(_puller(network, run, out), prepared, piece))
        del run
    return out, tuple(torch.cat(parts, -2) for parts in zip(*found, strict=True))


@dataclass(frozen=True)
class _Run:
    """One forward pass.

    Attributes:
        gates: [samples, gates], all one; the variables.
        leaves: Leaves of the output.
        spec: How they are nested.
    """

    gates: Tensor
    leaves: list[Any]
    spec: Any


def _run(network: GateNetwork, batch: Batch) -> _Run:
    gates = torch.ones(batch.size, network.gated.units, dtype=network.dtype, device=network.device)
    network.gated.source.values = gates.requires_grad_(torch.is_grad_enabled())
    output = run_batch(network.gated.module, batch.args, batch.kwargs)
    leaves, spec = pytree.tree_flatten(output)
    return _Run(gates, leaves, spec)


def _outputs_in_pieces(network: GateNetwork, batch: Batch, pieces: Sequence[slice]) -> tuple[list[Any], Any]:
    """Leaves of the output of a whole batch, from forward passes over its pieces."""
    with torch.no_grad():
        runs = [_run(network, _part(batch, piece)) for piece in pieces]
    sizes = [piece.stop - piece.start for piece in pieces]
    leaves = []
    for layout, *parts in zip(network.gated.outputs, *(run.leaves for run in runs), strict=True):
        leaves.append(layout.join(parts, sizes) if isinstance(layout, SampleAxis) else parts[0])
    return leaves, runs[0].spec


def _puller(network: GateNetwork, run: _Run, out: OutputLoss) -> Pull:
    samples = len(run.gates)
    rows = rows_of([run.leaves[place] for place in out.places], out.layouts, samples)

    def pull(vectors: Tensor) -> Tensor:
        if not rows.requires_grad:
            return torch.zeros(samples, len(network.columns), dtype=rows.dtype, device=rows.device)
        (found,) = torch.autograd.grad(rows, run.gates, grad_outputs=vectors, retain_graph=True)
        return found[:, network.columns]

    return pull


def _part(batch: Batch, piece: slice) -> Batch:
    """Some samples of a batch; the target stays whole."""

    def cut(leaf: Any) -> Any:
        return leaf[piece] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == batch.size else leaf

    args, kwargs = pytree.tree_map(cut, (batch.args, dict(batch.kwargs)))
    return Batch(args, kwargs, batch.target, piece.stop - piece.start)


def _precision(gated: Gated) -> torch.dtype:
    found = (p.dtype for p in gated.module.parameters() if p.is_floating_point())
    return next(found, torch.get_default_dtype())


class Moments:
    """Means and standard errors over samples, summed batch by batch so that any number of processes gives the same."""

    def __init__(self, network: GateNetwork) -> None:
        """Args: network: Says how many batches and units there are."""
        self._network = network
        self._rows = torch.zeros(len(network.batches), 2, len(network.columns) + 1, dtype=torch.float64)

    def add(self, visit: Visit, values: Tensor) -> None:
        """Adds values [samples, units] of one batch, and its loss."""
        values = values.detach().double()
        mean = values.mean(0)
        self._rows[visit.number, 0, :-1] = mean.cpu()
        self._rows[visit.number, 1, :-1] = (values - mean).square().sum(0).cpu()
        self._rows[visit.number, 0, -1] = visit.loss

    def finish(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean over samples [units], its standard error [units], and the mean loss.

        Raises:
            UserError: A derivative is NaN or infinite.
        """
        rows = gather(self._rows, self._network.device)
        if not bool(torch.isfinite(rows).all()):
            raise UserError(
                "a derivative of the loss is NaN or infinite", where="rank", why="the backward pass overflows"
            )
        (means, spread), sizes = rows.numpy().transpose(1, 0, 2), self._network.sizes
        count = sizes.sum()
        mean = sizes @ means / count
        within, between = spread[:, :-1].sum(0), sizes @ (means[:, :-1] - mean[:-1]) ** 2
        return mean[:-1], np.sqrt((within + between) / (count - 1) / count), float(mean[-1])


def by_group(network: GateNetwork, mean: np.ndarray, error: np.ndarray) -> dict[str, Scores]:
    """Scores of every group."""
    return dict(split_scores(mean, error, network.request.groups))
