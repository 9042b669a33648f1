"""Export: from a program to an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from ..errors import UserError
from ..passes.program import Program
from .artifact import DENSE_NAME, MODEL_NAME, PROGRAM_NAME, Artifact, staged
from .lower import lower_program
from .manifest import build_manifest, write_manifest
from .ort_kernels import kernel_report
from .targets import Target, find_target
from .tensorrt.export_engine import export_engines, module_paths
from .tensorrt.settings import EngineSettings


def export(
    program: Program,
    out: str | Path,
    *,
    target: str | Target = "ort-cpu",
    baseline: Program | None = None,
    facts: Mapping[str, Any] | None = None,
    engine: EngineSettings | None = None,
    progress: Callable[..., None] | None = None,
) -> Artifact:
    """Lowers a program and writes an artifact.

    The directory appears, or replaces an older artifact, only when everything in it is complete.

    Args:
        program: The network, usually quantised.
        out: Directory of the artifact.
        target: Where it will run.
        baseline: The dense network; goes along as FP32 for paired comparisons.
        facts: Plain data for the manifest, such as parameters and MACs.
        engine: How engines are built, for the TensorRT targets.
        progress: Called while an engine is built, as `progress(done, total, phase=name)`.

    Returns:
        The artifact.

    Raises:
        UserError: `out` holds something else, or cannot be written.
        UnsupportedError: An operation has no translation.
        EnvironmentLacksError: The target's runtime is not installed. An artifact for TensorRT is written without it;
            its engine is built later (`secateur engine`).
    """
    for name, value in (("program", program), ("baseline", baseline)):
        if not isinstance(value, Program) and (value is not None or name == "program"):
            raise UserError(
                f"{name} must be a Program, not {type(value).__name__}",
                where="export",
                hint="secateur.capture(model, example_inputs) makes one",
            )
    chosen, directory = find_target(target), Path(out)
    with staged(directory) as stage:
        lowered = lower_program(program, chosen)
        onnx.save(lowered.model, stage / MODEL_NAME)
        if baseline is not None:
            # The baseline is what the user had: FP32.
            onnx.save(lower_program(baseline, replace(chosen, half=False)).model, stage / DENSE_NAME)
        program.save(stage / PROGRAM_NAME)
        extra: dict[str, Any] = {}
        if chosen.dialect == "tensorrt":
            settings, paths = engine or EngineSettings(), module_paths(program)
            made = export_engines(stage, chosen, settings, paths=paths, previous=directory, progress=progress)
            kernels, extra = made.kernels, made.facts
        else:
            kernels = kernel_report(stage / MODEL_NAME)
        manifest = build_manifest(
            stage,
            target=chosen,
            lowered=lowered,
            kernels=kernels,
            history=program.history,
            facts=facts or {},
            extra=extra,
        )
        write_manifest(stage, manifest)
    return Artifact.load(directory)
