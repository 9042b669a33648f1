"""`rank`: dispatches to an estimator. A new estimator is one file here and one entry in `METHODS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import UserError, did_you_mean
from ...passes.program import Program
from ..data import Loader, LossFn
from . import ehap, gate_fisher, gate_ggn, hap, magnitude, oba, random_score, sosp, taylor
from .request import Progress, Request
from .table import Sensitivity

METHODS: Mapping[str, Callable[..., Sensitivity]] = {
    "ehap": ehap.estimate,
    "gate-fisher": gate_fisher.estimate,
    "gate-ggn": gate_ggn.estimate,
    "hap": hap.estimate,
    "magnitude": magnitude.estimate,
    "oba": oba.estimate,
    "random": random_score.estimate,
    "sosp": sosp.estimate,
    "taylor": taylor.estimate,
}
"""Estimators by name: `estimate(request, **options) -> Sensitivity`; keyword-only arguments are their own options."""


def rank(
    program: Program,
    loader: Loader | None = None,
    loss: LossFn | None = None,
    *,
    method: str = "hap",
    seed: int = 0,
    samples: int = 512,
    probes: int = 64,
    progress: Progress | None = None,
    **options: Any,
) -> Sensitivity:
    """Estimates for every unit of every group that may shrink how much the loss rises if it is removed.

    Args:
        program: The network; left as it was.
        loader: Yields `(inputs, target)`, always in the same order; None for methods that need no data.
        loss: `loss(output, target)`, the mean over the batch; None for methods that need no data.
        method: Name of the estimator.
        seed: Seed of the probes or scores, at least 0.
        samples: How many samples are read, from the start of the loader.
        probes: Random vectors of a stochastic estimator; at least 2, so that there is a standard error.
        progress: Called as `progress(done, total, **info)`.
        options: Options of the method itself.

    Raises:
        UserError: Unknown method or option, a value out of range, or data, weights or a loss that cannot be used.
    """
    if method not in METHODS:
        raise UserError(
            f"unknown ranking method {method!r}{did_you_mean(method, METHODS)}",
            where="rank.method",
            hint=f"there is: {', '.join(METHODS)}",
        )
    estimate = METHODS[method]
    known = [p.name for p in inspect.signature(estimate).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            common = ("seed", "samples", "probes", "progress")
            raise UserError(
                f"unknown option {name!r} of ranking method {method}{did_you_mean(name, (*known, *common))}",
                where="rank",
                hint=f"there is: {', '.join((*known, *common))}",
            )
    for name, value, least in (("seed", seed, 0), ("samples", samples, 1), ("probes", probes, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be a whole number, at least {least}, not {value!r}", where=f"rank.{name}")
    return estimate(Request(program, loader, loss, seed, samples, probes, progress), **options)
