"""EHAP: HAP's traces in half precision ("Resource Efficient Neural Networks Using Hessian Based Pruning", 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import EnvironmentLacksError, UserError
from .batches import Batch
from .hap import Probing, Reading, estimate_with
from .hvp import gradients, product
from .request import Request
from .scaling import finite_at
from .shards import gather
from .table import Sensitivity

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def estimate(
    request: Request,
    *,
    precision: Literal["auto", "bf16", "fp16"] = "auto",
    published: bool = False,
    deflate: int = 0,
    layerwise: bool = False,
    tied: Literal["sum", "max"] = "sum",
    absolute: bool = False,
    stop: float | None = None,
    keep: float = 0.5,
) -> Sensitivity:
    """HAP's score, ½ · Tr(H_pp) / |p| · ‖w_p‖², from Hessian-vector products in half precision.

    Forward pass and loss run under autocast, both derivatives in the types that it chose; weights, probes, products and
    sums stay in single precision or better. The gradient's graph, and so its memory, is that of half precision too, and
    all probes reuse it. BF16 has the range of FP32 and needs no scaling. In FP16 the loss is multiplied by one scale
    and each probe by another, both are divided out in FP32, and what overflows is computed again at half the scale and
    counted.

    Args:
        request: Network, data, loss, seed, and how many probes (with `stop`: at most).
        precision: "bf16", "fp16", or "auto": FP16 on a GPU, as published, and BF16 on a CPU, which has no FP16
            convolutions to speak of.
        published: Weighs the probes as the paper's code does: that lowers the scale by 2⁸ at every probe and never
            divides by it, so that the first probe makes up 99.6 % of the mean.
        deflate: As in `hap`.
        layerwise: As in `hap`.
        tied: As in `hap`.
        absolute: As in `hap`.
        stop: As in `hap`.
        keep: As in `hap`.

    Raises:
        UserError: Data, weights, loss or an option cannot be used, or FP16 overflows at every scale.
        UnsupportedError: An operation has no second derivative.
        EnvironmentLacksError: The device has no such precision, or memory does not suffice for one sample.
    """
    if published and stop is not None:
        raise UserError(
            "published and stop exclude each other",
            where="rank",
            why="in the published weighting every probe but the first is next to nothing",
            hint="leave out one of them",
        )
    reading = replace(Reading(tied, absolute), decay=2.0**-8 if published else 1.0)
    half = HalfPrecision(half_type(precision, _device(request)))
    table = estimate_with(request, half, reading, Probing(deflate, layerwise, stop, keep), "ehap")
    facts = {**table.facts, "precision": str(half.dtype).removeprefix("torch."), **half.facts(_device(request))}
    return replace(table, facts={**facts, "published": True} if published else facts)


def half_type(precision: str, device: torch.device) -> torch.dtype:
    """The half precision that an option asks for.

    Raises:
        EnvironmentLacksError: The device does not have it.
    """
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "bf16"
    if device.type == "cpu" and precision == "fp16":
        raise EnvironmentLacksError(
            "there is no FP16 on a CPU",
            where="rank.precision",
            why="its convolutions in FP16 are emulated, many times slower than in FP32",
            hint="take precision='bf16' here, or a GPU",
        )
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise EnvironmentLacksError(
            f"there is no {precision.upper()} on this device",
            where="rank.precision",
            why=f"the network is on {device}",
            hint="rank by method hap, in full precision",
        )
    return _TYPES[precision]


class HalfPrecision:
    """Gradients and products under autocast, at scales that fit.

    Attributes:
        dtype: BF16 or FP16.
        loss_scale: Factor of the loss. A scale that overflowed is never tried again.
        probe_scale: Factor of the probes, likewise.
        retried: Computations that overflowed.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """Args: dtype: BF16 or FP16."""
        self.dtype = dtype
        self.retries = {} if dtype == torch.float16 else {"retries": 0}
        self.loss_scale = 2.0**16 if dtype == torch.float16 else 1.0
        self.probe_scale = 1.0
        self.retried = 0

    def gradients(self, request: Request, batch: Batch, tensors: Sequence[Tensor]) -> tuple[float, list[Tensor | None]]:
        """Mean loss of a batch, and the gradient of `loss_scale` times it, with a graph."""
        if any(t.dtype == torch.float64 for t in tensors):
            raise UserError(
                "weights are in double precision",
                where="rank",
                why="autocast to half precision leaves double precision alone",
                hint="convert the model with model.float() before capture, or rank by method hap",
            )
        loss = 0.0

        def compute(scale: float) -> list[Tensor | None]:
            nonlocal loss
            loss, found = gradients(request, batch, tensors, half=self.dtype, scale=scale)
            return found

        result = finite_at(compute, self.loss_scale, **self.retries)
        self.loss_scale, self.retried = result.scale, self.retried + result.retried
        return loss, list(result.values)

    def product(
        self, gradient: Sequence[Tensor | None], tensors: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Hessian times vectors; `gradient` is what `gradients` returned last."""
        result = finite_at(
            lambda scale: product(gradient, tensors, vectors, scale=scale), self.probe_scale, **self.retries
        )
        self.probe_scale, self.retried = result.scale, self.retried + result.retried
        return result.unscaled(self.loss_scale)

    def facts(self, device: torch.device) -> dict[str, Any]:
        """The scales of this process, and how often any process computed again."""
        retried = int(gather(torch.tensor([float(self.retried)], dtype=torch.float64), device))
        scales = {"loss_scale": self.loss_scale, "probe_scale": self.probe_scale}
        capable = torch.cpu.get_capabilities()
        emulated = device.type == "cpu" and not (capable.get("avx512_bf16") or capable.get("amx_bf16"))
        return {
            "retried": retried,
            **(scales if self.dtype == torch.float16 else {}),
            **({"emulated": "this CPU has no BF16 instructions known to torch"} if emulated else {}),
        }


def _device(request: Request) -> torch.device:
    """Where the network lies."""
    first = next(request.program.graph_module.parameters(), None)
    return first.device if first is not None else torch.device("cpu")
