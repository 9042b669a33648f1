"""OBA: one Hessian-vector product with the weights themselves ("Optimal Brain Apoptosis", ICLR 2025)."""

from __future__ import annotations

from .hvp import split_scores
from .request import Request
from .table import Sensitivity
from .weight_terms import taylor_terms


def estimate(request: Request) -> Sensitivity:
    """½ Σ_{i in p} w_i (Hw)_i for the weights p that produce a unit, and w all weights that can be removed.

    ½ wᵀHw is the second-order Taylor term of removing everything; this is the share of it that falls to a unit: its own
    term ½ w_pᵀ H_pp w_p, and half of its interactions with every other unit of every layer. Signed, as published. One
    product in place of HAP's hundreds, and nothing random. The standard error is that of a mean over batches; zero if
    there is only one.

    Raises:
        UserError: Data, weights or loss cannot be used.
        UnsupportedError: An operation has no second derivative.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    terms = taylor_terms(request)
    scores = terms.mean(terms.curvature), terms.error(terms.curvature)
    return Sensitivity("oba", "loss", split_scores(*scores, request.groups), terms.facts)
