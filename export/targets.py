"""Targets, as data: one frozen dataclass each. A new target is one more entry in `TARGETS`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import UserError
from ..passes.quant.dialects import TENSORRT
from ..passes.quant.grid import Grid, QuantScheme


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
        without_them: Name of the target for processors that have none of them; "" if there is none.
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
    without_them: str = ""
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
    without_them="ort-cpu-avx2",
)

ORT_CPU_AVX2 = replace(
    ORT_CPU,
    name="ort-cpu-avx2",
    # Older processors add two products of U8 and S8 in 16 bits that saturate: 2 · 255 · 127 > 2¹⁵ - 1 > 2 · 255 · 63.
    scheme=QuantScheme(weight=Grid(bits=7, signed=True, symmetric=True, narrow=True)),
    instruction_sets=("avx2",),
    without_them="",
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

TARGETS = {t.name: t for t in (ORT_CPU, ORT_CPU_AVX2, TENSORRT_GPU, TENSORRT_RTX)}


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


def lacking_instructions(target: Target, instruction_sets: Collection[str]) -> str:
    """What follows from a processor's lack of what a target needs, in words; "" if it lacks nothing.

    Args:
        target: Where an artifact should run.
        instruction_sets: What the processor has; see `cpu.cpu_facts`.
    """
    if not target.instruction_sets or any(name in instruction_sets for name in target.instruction_sets):
        return ""
    lack = f"the processor has none of {', '.join(target.instruction_sets)}: INT8 is slow here"
    if target.without_them:
        lack += f", and integer sums may saturate, which changes results; take target {target.without_them}"
    return lack
