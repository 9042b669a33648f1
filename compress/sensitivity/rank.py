"""`rank`: dispatches to an estimator. A new estimator is one file here and one entry in `METHODS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from ...errors import UserError, did_you_mean
from ...passes.program import Program
from ..data import Loader, LossFn
from . import bn_scale, ehap, gate_fisher, gate_ggn, ggn, hap, magnitude, oba, obd, random_score, sosp, taylor
from .request import Progress, Request
from .table import Sensitivity

METHODS: Mapping[str, Callable[..., Sensitivity]] = {
    "bn-scale": bn_scale.estimate,
    "ehap": ehap.estimate,
    "gate-fisher": gate_fisher.estimate,
    "gate-ggn": gate_ggn.estimate,
    "ggn": ggn.estimate,
    "hap": hap.estimate,
    "magnitude": magnitude.estimate,
    "oba": oba.estimate,
    "obd": obd.estimate,
    "random": random_score.estimate,
    "sosp": sosp.estimate,
    "taylor": taylor.estimate,
}
"""Estimators by name: `estimate(request, **options) -> Sensitivity`; keyword-only arguments are their own options."""

_WITHOUT_DATA = frozenset({"bn-scale", "magnitude", "random"})
_WITH_PROBES = frozenset({"ehap", "hap"})


def rank(
    program: Program,
    loader: Loader | None = None,
    loss: LossFn | None = None,
    *,
    method: str = "gate-ggn",
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
    check_options(method, options)
    for name, value, least in (("seed", seed, 0), ("samples", samples, 1), ("probes", probes, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UserError(f"{name} must be a whole number, at least {least}, not {value!r}", where=f"rank.{name}")
    return METHODS[method](Request(program, loader, loss, seed, samples, probes, progress), **options)


def reads(method: str) -> tuple[str, ...]:
    """Which of `samples` and `probes`, which every method takes, a method reads."""
    return ("samples",) * (method not in _WITHOUT_DATA) + ("probes",) * (method in _WITH_PROBES)


def options_of(method: str) -> dict[str, Any]:
    """Type annotations of a method's own options, by name."""
    estimate = METHODS[method]
    hints = get_type_hints(estimate)
    named = inspect.signature(estimate).parameters.values()
    return {parameter.name: hints[parameter.name] for parameter in named if parameter.kind is parameter.KEYWORD_ONLY}


def check_options(method: str, options: Mapping[str, Any], *, common: Sequence[str] = ("samples", "probes")) -> None:
    """Checks that there is such a method, that it has these options, and that their values are of the right type.

    Needs no program and no data, so that a recipe is refused before anything runs. Ranges are checked by the methods.

    Args:
        method: Name of the estimator.
        options: Its own options.
        common: Names of the options that all methods have, for suggestions.

    Raises:
        UserError: Names what is wrong, with a suggestion.
    """
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(
            f"unknown ranking method {method!r}{did_you_mean(str(method), METHODS)}",
            where="rank.method",
            hint=f"there is: {', '.join(METHODS)}",
        )
    known = options_of(method)
    for name, value in options.items():
        if name not in known:
            raise UserError(
                f"unknown option {name!r} of ranking method {method}{did_you_mean(name, (*known, *common))}",
                where="rank",
                hint=f"there is: {', '.join((*known, *common))}",
            )
        try:
            TypeAdapter(known[name]).validate_python(value, strict=True)
        except ValidationError as error:
            raise UserError(
                f"{name} cannot be {value!r}",
                where=f"rank.{name}",
                why="; ".join(dict.fromkeys(found["msg"] for found in error.errors())),
                hint=f"it is {inspect.formatannotation(known[name])}",
            ) from None
