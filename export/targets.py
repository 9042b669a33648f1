"""Targets, as data: one frozen dataclass each. A new target is one more entry in `TARGETS`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UserError
from ..passes.quant.dialects import TENSORRT
from ..passes.quant.grid import QuantScheme


@dataclass(frozen=True)
class Target:
    """Where an artifact will run.

    Attributes:
        name: Name in recipes.
        runtime: Package that runs the artifact.
        scheme: Number grids and Q/DQ placement.
        opset: ONNX opset that the runtime is given.
        align_int8: Widths of INT8 layers are multiples of this.
        align_fp32: Widths of FP32 layers are multiples of this.
        instruction_sets: Processor flags of which one is needed for fast integer kernels; none needed if empty.
        dialect: Form of the ONNX file: which Q/DQ the runtime fuses, and which it rejects.
        half: What has no integer kernel is written in FP16, with casts around it.
        device: What the artifact runs on.
    """

    name: str
    runtime: str
    scheme: QuantScheme
    opset: int
    align_int8: int
    align_fp32: int
    instruction_sets: tuple[str, ...] = ()
    dialect: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    half: bool = False
    device: Literal["cpu", "cuda"] = "cpu"


ORT_CPU = Target(
    name="ort-cpu",
    runtime="onnxruntime",
    scheme=QuantScheme(),
    opset=20,
    align_int8=4,
    align_fp32=16,
    instruction_sets=("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"),
)

TENSORRT_GPU = Target(
    name="tensorrt",
    runtime="tensorrt",
    scheme=TENSORRT,
    opset=20,
    align_int8=16,
    align_fp32=8,
    dialect="tensorrt",
    half=True,
    device="cuda",
)

TENSORRT_RTX = replace(TENSORRT_GPU, name="tensorrt-rtx", runtime="tensorrt_rtx")

TARGETS = {t.name: t for t in (ORT_CPU, TENSORRT_GPU, TENSORRT_RTX)}


def find_target(target: str | Target) -> Target:
    """A target by its name.

    Raises:
        UserError: There is no such target.
    """
    if isinstance(target, Target):
        return target
    if target not in TARGETS:
        raise UserError(
            f"there is no target {target!r}",
            where="target",
            hint=f"known targets: {', '.join(sorted(TARGETS))}",
        )
    return TARGETS[target]
