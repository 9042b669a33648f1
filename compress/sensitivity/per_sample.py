"""Backward passes of single samples, reduced to one number a unit at once: never samples × weights in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from ...errors import EnvironmentLacksError, UserError
from ...passes.sample_axis import sample_axes
from ...passes.shapes import eval_mode
from ..data import out_of_memory, run_batch
from .batches import Batch, read_batches
from .hvp import Weights
from .output_hessian import OutputLoss, output_loss, rows_of
from .positive_root import positive_root
from .request import Request
from .shards import gather, my_share

_log = logging.getLogger(__name__)

Reduce = Callable[[Mapping[str, Tensor]], Tensor]
"""From the gradients of one backward pass, by name of the weight, to one value a unit [units]."""

# The gradients of a chunk of samples are held at once, for all weights: 2**26 numbers are 256 MB in single precision.
_NUMBERS = 2**26
_CHUNK = 32


@dataclass(frozen=True)
class Moments:
    """What the samples gave.

    Attributes:
        mean: float64 [units]: mean over samples and draws.
        error: float64 [units]: its standard error over samples, each the mean of its draws.
        facts: What it was measured on.
    """

    mean: np.ndarray
    error: np.ndarray
    facts: Mapping[str, object]


def gauss_newton(request: Request, weights: Weights, reduce: Reduce, draws: int) -> Moments:
    """Mean over samples n of `reduce(J_nᵀz)`, with random z of which E[z zᵀ] is the loss's Hessian in the outputs.

    If `reduce` is a quadratic form this is an unbiased estimate of the same form of the Gauss-Newton matrix. The loss
    is evaluated on whole batches, as it is written, the backward passes are those of single samples: by `vmap` in
    chunks, or one by one where an operation cannot be vectorised or the batch size is fixed. Batch norm is in
    evaluation mode. Under `torchrun` the processes share the chunks; all must read the same data.

    Args:
        request: Names network, data and loss.
        weights: The weights whose gradients are taken.
        reduce: What is made of each gradient.
        draws: Random z a sample.

    Raises:
        UserError: Data or loss cannot be used.
        UnsupportedError: The loss couples samples or has no second derivative, or an output has no samples.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    start = time.perf_counter()
    batches = read_batches(request.loader, request.samples, request.program, weights.device)
    samples = sum(batch.size for batch in batches)
    if samples < 2:
        raise UserError(
            "one sample is too few",
            where="rank.samples",
            why="there is no standard error over a single sample",
            hint="read at least 2 samples",
        )
    sums = torch.zeros(2, weights.units, dtype=torch.float64)
    mean_loss, roots, done = 0.0, set[str](), 0
    with (
        eval_mode(request.program.graph_module),
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        torch.autocast(weights.device.type, enabled=False),
    ):
        backward = _Backward(request, weights, reduce)
        for number, batch in enumerate(batches):
            out = backward.outputs(batch)
            mean_loss += batch.size / samples * out.value
            state = np.random.SeedSequence([request.seed, number]).generate_state(1, np.uint64)[0]
            seed = int(state >> 2)
            with torch.enable_grad():
                out.curved(torch.Generator().manual_seed(seed))
                vectors, root = positive_root(out, draws, seed)
            roots.add(root)
            for values in backward.run(batch, out, vectors, number):
                sums[0] += values.sum(0)
                sums[1] += values.square().sum(0)
                done += len(values)
                if request.progress:
                    request.progress(done, samples, loss=out.value)
    sums = gather(sums, weights.device)
    if not bool(torch.isfinite(sums).all()):
        raise UserError("a gradient is NaN or infinite", where="rank", why="the backward pass overflows")
    mean = sums[0] / samples
    variance = (sums[1] / samples - mean.square()).clamp_min(0) / (samples - 1)
    facts = {
        "samples": samples,
        "batches": len(batches),
        "draws": draws,
        "root": ", ".join(sorted(roots)),
        "seed": request.seed,
        "mean_loss": mean_loss,
        "device": str(weights.device),
        "dtype": weights.dtypes,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "seconds": round(time.perf_counter() - start, 3),
        **backward.facts(),
    }
    return Moments(mean.numpy(), variance.sqrt().numpy(), facts)


class _Backward:
    """Backward passes of single samples through a network."""

    def __init__(self, request: Request, weights: Weights, reduce: Reduce) -> None:
        """Args as those of `gauss_newton`."""
        self._request, self._weights, self._reduce = request, weights, reduce
        self._tensors = {name: tensor.detach() for name, tensor in zip(weights.names, weights.tensors, strict=True)}
        numel = sum(tensor.numel() for tensor in weights.tensors)
        self._chunk = max(1, min(_CHUNK, _NUMBERS // max(numel, 1)))
        self._one_by_one = request.program.static_batch or ""
        nodes = pytree.arg_tree_leaves(*request.program.graph.output_node().args)
        axes = sample_axes(request.program, [n for n in dict.fromkeys(nodes) if isinstance(n, torch.fx.Node)])
        self._layouts = [axes.get(node) for node in nodes]

    def facts(self) -> dict[str, object]:
        """How the passes were made."""
        slow = {"one_by_one": self._one_by_one} if self._one_by_one else {}
        return {"samples_a_chunk": 1 if self._one_by_one else self._chunk, **slow}

    def outputs(self, batch: Batch) -> OutputLoss:
        """The loss of a batch in the outputs."""
        assert self._request.loss is not None
        output = run_batch(self._request.program.graph_module, batch.args, batch.kwargs)
        leaves, spec = pytree.tree_flatten(output)
        return output_loss(self._request.loss, leaves, spec, self._layouts, batch.target, batch.size)

    def run(self, batch: Batch, out: OutputLoss, vectors: Tensor, number: int) -> Iterator[Tensor]:
        """Values float64 [samples of a chunk, units], mean over the draws, of this process's share of the chunks.

        Args:
            batch: The data.
            out: Its loss in the outputs.
            vectors: [draws, samples, elements].
            number: Of the batch; so that batches of one chunk do not all fall to the first process.
        """
        size = 1 if self._one_by_one else self._chunk
        starts = range(0, batch.size, size)
        turns = max(len(starts), 1)
        for turn in my_share(turns + number):
            if turn < number:
                continue
            low = starts[turn - number]
            yield from self._values(batch, out, vectors, low, min(low + size, batch.size))

    def _values(self, batch: Batch, out: OutputLoss, vectors: Tensor, low: int, high: int) -> Iterator[Tensor]:
        """Values of some samples; in smaller chunks once memory has run out."""
        while low < high:
            end = min(high, low + (1 if self._one_by_one else self._chunk))
            try:
                if self._one_by_one:
                    found = self._single(batch, out, vectors[:, low], low)
                else:
                    found = self._vectorised(batch, out, vectors[:, low:end], slice(low, end))
            except (RuntimeError, MemoryError) as error:
                self._go_smaller(error, end - low)
            else:
                yield found.double().cpu()
                low = end

    def _go_smaller(self, error: Exception, size: int) -> None:
        if not out_of_memory(error):
            if self._one_by_one:
                raise error
            self._one_by_one = str(error).splitlines()[0] or type(error).__name__
            _log.warning("samples cannot be vectorised and go one by one: %s", self._one_by_one)
            return
        if size == 1:
            raise EnvironmentLacksError(
                "memory does not suffice",
                where="rank",
                why="not even for the gradient of one sample",
                hint="rank by a method that needs no data, such as magnitude, or on a larger machine",
            ) from error
        self._chunk = (size + 1) // 2
        _log.warning("out of memory with %d samples at once: going on with %d", size, self._chunk)

    def _rows(self, output: object, out: OutputLoss, samples: int) -> Tensor:
        """The outputs that the loss depends on, [samples, elements]."""
        leaves = pytree.tree_leaves(output)
        return rows_of([leaves[place] for place in out.places], out.layouts, samples)

    def _vectorised(self, batch: Batch, out: OutputLoss, vectors: Tensor, rows: slice) -> Tensor:
        """Args: vectors: [draws, samples of the chunk, elements]."""
        leaves, spec = pytree.tree_flatten((batch.args, dict(batch.kwargs)))
        moving = [isinstance(x, Tensor) and x.ndim > 0 and x.shape[0] == batch.size for x in leaves]

        def one(inputs: list[Tensor], draws: Tensor) -> Tensor:
            single = iter(inputs)
            args, kwargs = pytree.tree_unflatten(
                [next(single)[None] if moves else leaf for leaf, moves in zip(leaves, moving, strict=True)], spec
            )

            def network(tensors: dict[str, Tensor]) -> Tensor:
                output = functional_call(self._request.program.graph_module, tensors, args, kwargs)
                return self._rows(output, out, 1)[0]

            pull = vjp(network, self._tensors)[1]
            # Draw by draw: the gradients of one are gone before the next.
            total = self._reduce(pull(draws[0])[0])
            for draw in draws[1:]:
                total = total + self._reduce(pull(draw)[0])
            return total / len(draws)

        inputs = [leaf[rows] for leaf, moves in zip(leaves, moving, strict=True) if moves]
        return vmap(one, in_dims=(0, 1))(inputs, vectors)

    def _single(self, batch: Batch, out: OutputLoss, vectors: Tensor, sample: int) -> Tensor:
        """One sample by itself, or, if the batch size is fixed, in its batch; args: vectors: [draws, elements]."""
        fixed = self._request.program.static_batch is not None

        def cut(leaf: Any) -> Any:
            whole = fixed or not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != batch.size
            return leaf if whole else leaf[sample : sample + 1]

        args, kwargs = pytree.tree_map(cut, (batch.args, dict(batch.kwargs)))
        samples, position = (batch.size, sample) if fixed else (1, 0)
        tensors = {name: tensor.clone().requires_grad_() for name, tensor in self._tensors.items()}
        with torch.enable_grad():
            output = functional_call(self._request.program.graph_module, tensors, args, kwargs)
            row = self._rows(output, out, samples)[position]
        total = torch.zeros(self._weights.units, dtype=row.dtype, device=row.device)
        for vector in vectors if row.requires_grad else ():
            found = torch.autograd.grad(row, list(tensors.values()), vector, retain_graph=True, allow_unused=True)
            gradients = {
                name: torch.zeros_like(tensor) if gradient is None else gradient
                for (name, tensor), gradient in zip(tensors.items(), found, strict=True)
            }
            total += self._reduce(gradients)
        return (total / len(vectors))[None]
