"""Export: from a program to an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from ..passes.program import Program
from .artifact import DENSE_NAME, MODEL_NAME, PROGRAM_NAME, Artifact, staged
from .lower import lower_program
from .manifest import build_manifest, write_manifest
from .ort_kernels import kernel_report
from .targets import Target, find_target


def export(
    program: Program,
    out: str | Path,
    *,
    target: str | Target = "ort-cpu",
    baseline: Program | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Artifact:
    """Lowers a program and writes an artifact.

    The directory appears, or replaces an older artifact, only when everything in it is complete.

    Args:
        program: The network, usually quantised.
        out: Directory of the artifact.
        target: Where it will run.
        baseline: The dense network; goes along as FP32 for paired comparisons.
        facts: Plain data for the manifest, such as parameters and MACs.

    Returns:
        The artifact.

    Raises:
        UserError: `out` holds something else, or cannot be written.
        UnsupportedError: An operation has no translation.
        EnvironmentLacksError: The target's runtime is not installed.
    """
    chosen, directory = find_target(target), Path(out)
    with staged(directory) as stage:
        lowered = lower_program(program, chosen)
        onnx.save(lowered.model, stage / MODEL_NAME)
        if baseline is not None:
            onnx.save(lower_program(baseline, chosen).model, stage / DENSE_NAME)
        program.save(stage / PROGRAM_NAME)
        manifest = build_manifest(
            stage,
            target=chosen,
            lowered=lowered,
            kernels=kernel_report(stage / MODEL_NAME),
            history=program.history,
            facts=facts or {},
        )
        write_manifest(stage, manifest)
    return Artifact.load(directory)
