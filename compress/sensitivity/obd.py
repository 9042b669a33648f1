"""OBD: optimal brain damage (LeCun, Denker and Solla, NeurIPS 1990), by unit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from .ggn import check_draws, sum_of_parts
from .hvp import producing_weights, split_scores
from .per_sample import gauss_newton
from .request import Request, per_unit
from .table import Sensitivity


def estimate(request: Request, *, draws: int = 4) -> Sensitivity:
    """½ Σ w_i² h_ii over the weights that produce a unit, with h the diagonal of the Hessian (equation 5 of the paper).

    As in the paper the diagonal is that of the Gauss-Newton matrix, so that it is never negative. The paper gets it by
    a recursion of its own that drops terms off the diagonal at every layer; here it is that of the true Gauss-Newton
    matrix, in expectation, by gradients of single samples (`per_sample`).

    Args:
        request: The question.
        draws: Random vectors a sample.

    Raises:
        UserError: Data, weights, loss or an option cannot be used.
        UnsupportedError: The loss couples samples or has no second derivative.
    """
    check_draws(draws)
    weights = producing_weights(request)
    tensors = {name: tensor.detach() for name, tensor in zip(weights.names, weights.tensors, strict=True)}

    def reduce(gradients: Mapping[str, Tensor]) -> Tensor:
        squares = {name: (gradient * tensors[name]).square() / 2 for name, gradient in gradients.items()}
        return sum_of_parts(
            weights, [per_unit(squares[weights.names[part.tensor]], part.member) for part in weights.slices]
        )

    moments = gauss_newton(request, weights, reduce, draws)
    return Sensitivity("obd", "loss", split_scores(moments.mean, moments.error, request.groups), moments.facts)
