"""GGN: the Gauss-Newton matrix of the loss in the weights, from gradients of single samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from ...errors import UserError
from .hvp import Weights, producing_weights, split_scores
from .per_sample import Reduce, gauss_newton
from .request import Request, per_unit, slice_size
from .table import Sensitivity


def estimate(request: Request, *, draws: int = 4, form: Literal["trace", "quadratic"] = "trace") -> Sensitivity:
    """The curvature that a unit loses with its weights, by the Gauss-Newton matrix G in place of the Hessian.

    `trace` is HAP's score with G for H: ½ Tr(G_pp) / |p| · ‖w_p‖², summed over the weight slices p that produce the
    unit. `quadratic` makes no assumption about the matrix: ½ wᵀ G w with w all the weights that produce the unit.

    G is the mean over samples of J_nᵀ H_n J_n, with J_n the derivative of a sample's outputs in the weights and H_n the
    Hessian of its loss in the outputs; its negative part, if the loss is not convex in the outputs, is left out. So no
    estimate is ever negative, and the spread is that of one sample's square, not that of random signs over all weights
    as in Hutchinson's (`per_sample`).

    Args:
        request: The question.
        draws: Random vectors a sample.
        form: Which of the two.

    Raises:
        UserError: Data, weights, loss or an option cannot be used.
        UnsupportedError: The loss couples samples or has no second derivative.
    """
    check_draws(draws)
    if form not in ("trace", "quadratic"):
        raise UserError(f"unknown form {form!r}", where="rank.form", hint="there is: trace, quadratic")
    weights = producing_weights(request)
    moments = gauss_newton(request, weights, _trace(weights) if form == "trace" else _quadratic(weights), draws)
    scores = split_scores(moments.mean, moments.error, request.groups)
    return Sensitivity("ggn", "loss", scores, {**moments.facts, "form": form})


def check_draws(draws: int) -> None:
    """Raises: UserError: The number of draws is none."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise UserError(f"draws must be a whole number, at least 1, not {draws!r}", where="rank.draws")


def sum_of_parts(weights: Weights, parts: list[Tensor]) -> Tensor:
    """Values [width] of each slice of `weights`, summed by unit [units]."""
    by_start: dict[int, Tensor] = {}
    for part, values in zip(weights.slices, parts, strict=True):
        start = part.units.start
        by_start[start] = by_start[start] + values if start in by_start else values
    return torch.cat(list(by_start.values())) if by_start else torch.zeros(0, device=weights.device)


def _trace(weights: Weights) -> Reduce:
    factors = []
    for part in weights.slices:
        weight = weights.tensors[part.tensor].detach()
        squares = per_unit(weight.double().square(), part.member)
        factors.append((squares / (2 * slice_size(weight, part.member))).to(weight.dtype))

    def reduce(gradients: Mapping[str, Tensor]) -> Tensor:
        squares = {name: gradient.square() for name, gradient in gradients.items()}
        return sum_of_parts(
            weights,
            [
                per_unit(squares[weights.names[part.tensor]], part.member) * factor
                for part, factor in zip(weights.slices, factors, strict=True)
            ],
        )

    return reduce


def _quadratic(weights: Weights) -> Reduce:
    tensors = {name: tensor.detach() for name, tensor in zip(weights.names, weights.tensors, strict=True)}

    def reduce(gradients: Mapping[str, Tensor]) -> Tensor:
        products = {name: gradient * tensors[name] for name, gradient in gradients.items()}
        slopes = [per_unit(products[weights.names[part.tensor]], part.member) for part in weights.slices]
        return sum_of_parts(weights, slopes).square() / 2

    return reduce
