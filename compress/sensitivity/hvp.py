"""Hessian-vector products over the weights that produce units: what HAP, EHAP, OBA and SOSP share."""

from __future__ import annotations

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
from .batches import Batch, batch_loss
from .request import Request, per_unit
from .table import Scores


@dataclass(frozen=True)
class Slice:
    """The weight slices of one group in one tensor.

    Attributes:
        units: Where the group lies in the vector of all units.
        tensor: Number of the tensor.
        member: Which positions belong to each unit.
    """

    units: slice
    tensor: int
    member: Member


@dataclass(frozen=True)
class Weights:
    """The weights that produce units.

    Attributes:
        names: Dotted names of the tensors.
        tensors: The tensors; the variables of the Hessian.
        slices: Which of their slices belong to which units.
        units: Number of units of all groups.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    slices: tuple[Slice, ...]
    units: int

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.tensors[0].device if self.tensors else torch.device("cpu")

    @property
    def dtypes(self) -> str:
        """Their types, for the facts."""
        return ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in self.tensors}))

    def per_unit(self, values: Sequence[Tensor], slices: Iterable[Slice] | None = None) -> Tensor:
        """Sums elementwise values of the tensors over the slices of each unit.

        Args:
            values: Of the shapes of the tensors.
            slices: Only these.

        Returns:
            float64 [units], on the CPU.
        """
        sums = torch.zeros(self.units, dtype=torch.float64)
        for part in self.slices if slices is None else slices:
            sums[part.units] += per_unit(values[part.tensor].double(), part.member).cpu()
        return sums

    def removable(self) -> list[Tensor]:
        """The weights themselves where they belong to a unit, zero elsewhere."""
        result = []
        for number, tensor in enumerate(self.tensors):
            covered = torch.zeros_like(tensor, requires_grad=False)
            for part in (s for s in self.slices if s.tensor == number):
                index = torch.as_tensor(part.member.index, device=tensor.device).flatten()
                covered.index_fill_(part.member.axis, index, 1.0)
            result.append(tensor.detach() * covered)
        return result


def producing_weights(request: Request) -> Weights:
    """The weights that produce the units of the groups that get a score.

    Raises:
        UserError: The method has no loss to differentiate, or weights are in half precision.
    """
    if request.loss is None:
        raise UserError(
            "this ranking method needs a loss", where="rank", hint="pass loss(output, target) -> mean over the batch"
        )
    tensors: dict[str, Tensor] = {}
    slices: list[Slice] = []
    start = 0
    for group in request.groups:
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
            slices.append(Slice(units, list(tensors).index(member.tensor), member))
    return Weights(tuple(tensors), tuple(tensors.values()), tuple(slices), start)


def gradients(
    request: Request, batch: Batch, tensors: Sequence[Tensor], *, half: torch.dtype | None = None, scale: float = 1.0
) -> tuple[float, list[Tensor | None]]:
    """Mean loss of a batch, and its gradient with a graph that products may be taken of again and again.

    Attention runs on the kernel that has second derivatives.

    Args:
        request: Names network and loss.
        batch: The data.
        tensors: The variables.
        half: Computes the network under autocast to this type; None in the precision of the weights.
        scale: The gradient is that of `scale * loss`.

    Returns:
        The loss, and a gradient for each tensor; None where the loss does not depend on it.
    """
    assert request.loss is not None
    kind = tensors[0].device.type if tensors else "cpu"
    with sdpa_kernel(SDPBackend.MATH):
        with torch.autocast(kind, dtype=half, enabled=half is not None):
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
        with second_derivatives():
            found = torch.autograd.grad(loss * scale, list(tensors), create_graph=True, allow_unused=True)
    return float(loss.detach()), list(found)


def product(
    gradient: Sequence[Tensor | None], tensors: Sequence[Tensor], vectors: Sequence[Tensor], *, scale: float = 1.0
) -> list[Tensor]:
    """`scale` · H v for the Hessian H of which `gradient` is the gradient; the graph stays for the next product."""
    # A gradient without a graph is constant: the loss is linear in that tensor.
    curved = [(g, v) for g, v in zip(gradient, vectors, strict=True) if g is not None and g.requires_grad]
    pairs = [(g, v * scale if scale != 1.0 else v) for g, v in curved]
    if not pairs:
        return [torch.zeros_like(t, requires_grad=False) for t in tensors]
    outputs, cotangents = zip(*pairs, strict=True)
    with second_derivatives():
        products = torch.autograd.grad(
            outputs, list(tensors), grad_outputs=cotangents, retain_graph=True, allow_unused=True
        )
    return [
        h if h is not None else torch.zeros_like(t, requires_grad=False) for t, h in zip(tensors, products, strict=True)
    ]


def split_scores(mean: np.ndarray, error: np.ndarray, groups: Sequence[Group]) -> Mapping[str, Scores]:
    """Estimates and standard errors [units] of all units, by group."""
    starts = np.cumsum([0, *(group.width for group in groups)])
    spans = [slice(start, start + group.width) for start, group in zip(starts, groups, strict=False)]
    return {g.name: Scores(mean[span], error[span]) for g, span in zip(groups, spans, strict=True)}


def attention_fact(request: Request) -> dict[str, str]:
    """Says that attention ran on another kernel than it would by itself, if the network has attention."""
    fused = any("scaled_dot_product" in str(node.target) for node in request.program.graph.nodes)
    return {"attention": "math kernel: the fused ones have no second derivative"} if fused else {}


@contextmanager
def differentiable(module: nn.Module, tensors: Iterable[Tensor]) -> Iterator[None]:
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
def second_derivatives() -> Iterator[None]:
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
