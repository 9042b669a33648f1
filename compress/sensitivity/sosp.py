"""SOSP-H: first and second order, all interactions ("SOSP: Efficiently Capturing Global Correlations", ICLR 2022)."""

from __future__ import annotations

import numpy as np

from .hvp import split_scores
from .request import Request
from .table import Sensitivity
from .weight_terms import taylor_terms


def estimate(request: Request) -> Sensitivity:
    """|w_pᵀ g| + ½ |w_pᵀ H w| for the weights p that produce a unit, and w all weights that can be removed.

    w is the sum of the vectors of all structures, so that one product H w holds the correlations of a unit with all
    others: the idea that the paper calls SOSP-H. Here a structure is a unit: the filters of all layers that have to go
    together. Absolute values are taken of the mean over all data, not of a batch. The exact form, two absolute values
    and the ½, is the standard second-order Taylor bound; only the paper's abstract was at hand to check it against.
    Without the first term and the absolute value it is `oba`.

    The standard error is that of a mean over batches, with the signs held fixed; zero if there is only one batch.

    Raises:
        UserError: Data, weights or loss cannot be used.
        UnsupportedError: An operation has no second derivative.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    terms = taylor_terms(request)
    first, second = (values * np.sign(terms.mean(values)) for values in (terms.slope, terms.curvature))
    signed = first + second
    scores = terms.mean(signed), terms.error(signed)
    return Sensitivity("sosp", "loss", split_scores(*scores, request.groups), terms.facts)
