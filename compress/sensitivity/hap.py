"""HAP: the relative Hessian trace (Yu et al., "Hessian-Aware Pruning and Optimal Neural Implant", WACV 2022)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ...errors import UserError
from .hessian import Arithmetic, FullPrecision, Hessian
from .hvp import Weights, attention_fact, producing_weights, split_scores
from .probes import hutchinson
from .request import Request, per_unit, slice_size
from .stopping import Rule
from .table import Sensitivity


def estimate(
    request: Request,
    *,
    deflate: int = 0,
    layerwise: bool = False,
    tied: Literal["sum", "max"] = "sum",
    absolute: bool = False,
    stop: float | None = None,
    keep: float = 0.5,
) -> Sensitivity:
    """½ · Tr(H_pp) / |p| · ‖w_p‖², summed over the weight slices p that produce a unit.

    That is the second-order Taylor term ½ w_pᵀ H_pp w_p of removing p at a point where the gradient is zero, with H_pp
    replaced by the multiple of the identity that has the same trace. HAP's code drops the ½, which ranks alike; here it
    stays, so that the numbers are rises of the loss. As in HAP there is no absolute value and no clamp: a trace may
    come out negative.

    Traces are Hutchinson's: v_pᵀ (Hv)_p with one Rademacher vector v over all producing weights at once, batch norm in
    evaluation mode, in the precision of the weights (see `probes.hutchinson`); the spread over probes gives the
    standard error.

    Args:
        request: Network, data, loss, seed, and how many probes (with `stop`: at most).
        deflate: Dimensions to take out of the Hessian before probing, for two products each: see `probes.Deflation`.
            Ten of them, the number of classes, were worth several hundred probes on a ResNet-20.
        layerwise: Probes one tensor at a time: less variance a probe, but a product for each tensor.
        tied: How the terms of several layers that produce one unit (residual ties) become one: their "sum", the rise
            when all go, or their "max". HAP prunes every convolution by itself and keeps a channel of the stream as
            long as one of them does, which is the maximum.
        absolute: Takes the absolute value of every layer's trace.
        stop: Stops when this share of the units (0.95, say) is expected on the right side of the threshold.
        keep: The threshold of `stop`: the share of all units that will be kept.

    Raises:
        UserError: Data, weights, loss or an option cannot be used.
        UnsupportedError: An operation has no second derivative.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    reading = Reading(tied, absolute)
    probing = Probing(deflate, layerwise, stop, keep)
    return estimate_with(request, FullPrecision(), reading, probing, "hap")


@dataclass(frozen=True)
class Probing:
    """How traces are estimated; the attributes are options of `estimate`."""

    deflate: int = 0
    layerwise: bool = False
    stop: float | None = None
    keep: float = 0.5

    def __post_init__(self) -> None:
        """Raises UserError if there is less than nothing to take out."""
        if self.deflate < 0:
            raise UserError(f"deflate must be at least 0, not {self.deflate}", where="rank.deflate")


@dataclass(frozen=True)
class Reading:
    """How traces of slices become scores of units.

    Attributes:
        tied: "sum" or "max" over the layers that produce a unit.
        absolute: Absolute values of the traces.
        decay: Weight of a probe relative to the one before it.
    """

    tied: Literal["sum", "max"] = "sum"
    absolute: bool = False
    decay: float = 1.0

    def combine(self, weights: Weights, factors: np.ndarray, traces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores and standard errors [units].

        Args:
            weights: The slices.
            factors: By which a trace becomes a rise of the loss [columns].
            traces: One estimate a probe [probes, columns].
        """
        share = self.decay ** np.arange(len(traces))
        share /= share.sum()
        terms = traces * factors
        mean = share @ terms
        if self.absolute:
            terms, mean = terms * np.sign(mean), np.abs(mean)
        rows = np.zeros((len(traces), weights.units))
        best = np.full(weights.units, -np.inf)
        start = 0
        for part in weights.slices:
            columns = slice(start, start + part.member.index.shape[0])
            start = columns.stop
            if self.tied == "sum":
                rows[:, part.units] += terms[:, columns]
            else:
                better = mean[columns] > best[part.units]
                rows[:, part.units] = np.where(better, terms[:, columns], rows[:, part.units])
                best[part.units] = np.maximum(best[part.units], mean[columns])
        return share @ rows, rows.std(0, ddof=1) * np.sqrt((share**2).sum())


def estimate_with(
    request: Request, arithmetic: Arithmetic, reading: Reading, probing: Probing, method: str
) -> Sensitivity:
    """HAP's score in a given arithmetic; see `estimate`."""
    start = time.perf_counter()
    weights = producing_weights(request)
    factors = _factors(weights)
    rule = Rule(lambda traces: reading.combine(weights, factors, traces), probing.stop, probing.keep)
    products = 2 * probing.deflate + request.probes
    hessian = Hessian(request, weights, arithmetic, products=products, layerwise=probing.layerwise)
    traces = hutchinson(hessian, rule, probes=request.probes, seed=request.seed, deflate=probing.deflate)
    return Sensitivity(
        method,
        "loss",
        split_scores(*reading.combine(weights, factors, traces), request.groups),
        {
            "samples": hessian.samples,
            "batches": len(hessian.batches),
            "probes": len(traces),
            "most_probes": request.probes,
            "deflate": probing.deflate,
            "layerwise": probing.layerwise,
            "misplaced": rule.misplaced(traces),
            "keep": probing.keep,
            "seed": request.seed,
            "mean_loss": hessian.mean_loss,
            "device": str(weights.device),
            "dtype": weights.dtypes,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "seconds": round(time.perf_counter() - start, 3),
            **hessian.chunks.facts(),
            **attention_fact(request),
        },
    )


def _factors(weights: Weights) -> np.ndarray:
    """½ ‖w_p‖² / |p| of every slice [columns]."""
    found = [np.zeros(0)]
    for part in weights.slices:
        weight = weights.tensors[part.tensor].detach()
        squares = per_unit(weight.double().square(), part.member).cpu().numpy()
        found.append(squares / (2 * slice_size(weight, part.member)))
    return np.concatenate(found)
