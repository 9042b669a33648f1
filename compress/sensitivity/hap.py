"""HAP: the relative Hessian trace (Yu et al., "Hessian-Aware Pruning and Optimal Neural Implant", WACV 2022)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...errors import UnsupportedError, UserError
from ...passes.labels.groups import Group, Member
from ...passes.shapes import eval_mode
from .batches import Batch, batch_loss, read_batches
from .request import Request, per_unit, slice_size
from .shards import gather, my_share
from .table import Scores, Sensitivity


@dataclass(frozen=True)
class _Slices:
    """The weight slices of one group in one tensor.

    Attributes:
        units: Where the group lies in the vector of all units.
        tensor: Number of the tensor.
        member: Which positions belong to each unit.
        factor: float64 [width]: ½ ‖w_p‖² / |p|, by which a trace becomes a rise of the loss.
    """

    units: slice
    tensor: int
    member: Member
    factor: Tensor


def estimate(request: Request) -> Sensitivity:
    """½ · Tr(H_pp) / |p| · ‖w_p‖², summed over the weight slices p that produce a unit.

    That is the second-order Taylor term ½ w_pᵀ H_pp w_p of removing p at a point where the gradient is zero, with H_pp
    replaced by the multiple of the identity that has the same trace. HAP's code drops the ½ and prunes every
    convolution by itself; here the ½ stays, so that the numbers are rises of the loss, and a unit that several layers
    produce (residual ties) has the sum of their terms. As in HAP there is no absolute value and no clamp: a trace may
    come out negative.

    Traces are Hutchinson's: v_pᵀ (Hv)_p with one Rademacher vector v over all producing weights at once, batch norm in
    evaluation mode, in the precision of the weights. H is the Hessian of the mean loss over the samples; a probe's
    vector is the same on every batch, so each probe gives one estimate on all data, and the spread over probes
    the standard error. The gradient's graph is built once a batch and reused by all probes. Under `torchrun` the
    processes share the probes; all must read the same data.

    Raises:
        UserError: Data, weights or loss cannot be used.
        UnsupportedError: An operation has no second derivative.
    """
    start = time.perf_counter()
    groups = request.groups
    if request.loss is None:
        raise UserError(
            "method hap needs a loss", where="rank", hint="pass loss(output, target) -> mean over the batch"
        )
    tensors, slices, width = _slices(request, groups)
    device = next(iter(tensors.values())).device if tensors else torch.device("cpu")
    batches = read_batches(request.loader, request.samples, request.program, device)
    samples = sum(batch.size for batch in batches)
    probes = my_share(request.probes)
    estimates = torch.zeros(request.probes, width, dtype=torch.float64)
    mean_loss = 0.0
    with _differentiable(request.program.graph_module, tensors.values()):
        for number, batch in enumerate(batches):
            share = batch.size / samples
            loss, gradients = _gradients(request, batch, list(tensors.values()))
            mean_loss += share * loss
            for done, probe in enumerate(probes, start=1):
                traces = _probe(gradients, list(tensors.values()), request.seed, probe)
                for part in slices:
                    units = per_unit(traces[part.tensor], part.member).double()
                    estimates[probe, part.units] += share * (units * part.factor).cpu()
                if request.progress:
                    request.progress(number * len(probes) + done, len(batches) * len(probes), loss=loss)
            del gradients
    estimates = gather(estimates, device)
    if not bool(torch.isfinite(estimates).all()):
        raise UserError(
            "a Hessian trace is NaN or infinite", where="rank", why="the second derivative of the loss overflows"
        )
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()})
    return Sensitivity(
        "hap",
        "loss",
        _scores(estimates.numpy(), groups),
        {
            "samples": samples,
            "batches": len(batches),
            "probes": request.probes,
            "seed": request.seed,
            "mean_loss": mean_loss,
            "device": str(device),
            "dtype": ", ".join(dtypes),
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "seconds": round(time.perf_counter() - start, 3),
        },
    )


def _slices(request: Request, groups: Sequence[Group]) -> tuple[dict[str, Tensor], list[_Slices], int]:
    """Producing weights by name, their slices by group, and the number of units."""
    tensors: dict[str, Tensor] = {}
    slices: list[_Slices] = []
    start = 0
    for group in groups:
        units = slice(start, start + group.width)
        start += group.width
        for member in group.producers:
            weight = tensors.setdefault(member.tensor, request.tensor(member))
            if weight.dtype not in (torch.float32, torch.float64):
                raise UserError(
                    f"weights are {str(weight.dtype).removeprefix('torch.')}",
                    where=member.tensor,
                    why="second derivatives need single precision",
                    hint="convert the model with model.float() before capture",
                )
            with torch.no_grad():
                squares = per_unit(weight.detach().double().square(), member)
            factor = squares / (2 * slice_size(weight, member))
            slices.append(_Slices(units, list(tensors).index(member.tensor), member, factor))
    return tensors, slices, start


def _gradients(request: Request, batch: Batch, tensors: Sequence[Tensor]) -> tuple[float, list[Tensor | None]]:
    """Mean loss of a batch, and its gradient with a graph; None where the loss is at most linear in a tensor."""
    assert request.loss is not None
    with sdpa_kernel(SDPBackend.MATH), torch.autocast(tensors[0].device.type if tensors else "cpu", enabled=False):
        loss = batch_loss(request.program, request.loss, batch)
        if not tensors:
            return float(loss), []
        if not loss.requires_grad:
            raise UserError(
                "the loss has no gradient",
                where="loss",
                why="it does not depend on the weights, or was detached",
                hint="return a differentiable loss",
            )
        with _second_derivatives():
            gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
    return float(loss.detach()), [g if g is not None and g.requires_grad else None for g in gradients]


def _probe(gradients: Sequence[Tensor | None], tensors: Sequence[Tensor], seed: int, probe: int) -> list[Tensor]:
    """The products v ∘ Hv of one Rademacher vector v over all tensors; each of the shape of its tensor."""
    state = np.random.SeedSequence([seed, probe]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> 1))
    signs = [
        (torch.randint(0, 2, t.shape, generator=generator, dtype=torch.int8) * 2 - 1).to(t.device, t.dtype)
        for t in tensors
    ]
    pairs = [(g, v) for g, v in zip(gradients, signs, strict=True) if g is not None]
    if not pairs:
        return [torch.zeros_like(t) for t in tensors]
    outputs, vectors = zip(*pairs, strict=True)
    with _second_derivatives():
        products = torch.autograd.grad(
            outputs, list(tensors), grad_outputs=vectors, retain_graph=True, allow_unused=True
        )
    return [v * h if h is not None else torch.zeros_like(v) for v, h in zip(signs, products, strict=True)]


def _scores(estimates: np.ndarray, groups: Sequence[Group]) -> Mapping[str, Scores]:
    """Mean and standard error over the probes [probes, units], by group."""
    mean = estimates.mean(0)
    error = estimates.std(0, ddof=1) / np.sqrt(len(estimates))
    ends = np.cumsum([group.width for group in groups])[:-1]
    return {g.name: Scores(m, e) for g, m, e in zip(groups, np.split(mean, ends), np.split(error, ends), strict=True)}


@contextmanager
def _differentiable(module: nn.Module, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Evaluation mode, and gradients for these tensors only; puts everything back."""
    flags = [(p, p.requires_grad) for p in module.parameters()]
    with eval_mode(module), torch.enable_grad():
        try:
            module.requires_grad_(False)
            for tensor in tensors:
                tensor.requires_grad_(True)
            yield
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


@contextmanager
def _second_derivatives() -> Iterator[None]:
    """Says which operation lacks a second derivative."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented" not in str(error) and "differentiable twice" not in str(error):
            raise
        raise UnsupportedError(
            "an operation of this network has no second derivative",
            where="rank",
            why=str(error).splitlines()[0],
            hint="rank by another method, such as magnitude",
        ) from error
