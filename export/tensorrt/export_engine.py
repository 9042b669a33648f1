"""The TensorRT part of an export: legality, engines of the network and of its baseline, and what the manifest says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from torch import fx

from ...errors import UnsupportedError
from ...passes.program import Program
from ..artifact import DENSE_NAME, MODEL_NAME
from ..ort_kernels import KernelReport
from ..targets import Target
from .engine_file import PLAN_SUFFIX, ensure_engine, library_or_reason
from .layers import precision_report, report_from_json
from .legality import require_legal
from .library import DEFAULT_CAPABILITIES
from .settings import EngineSettings


@dataclass(frozen=True)
class EngineExport:
    """What an export for TensorRT adds.

    Attributes:
        kernels: Which layers are integer.
        facts: For the manifest: `engines` by file, `engines_missing` (why there is none, by ONNX file), `findings`.
    """

    kernels: KernelReport
    facts: dict[str, Any]


def export_engines(
    folder: Path,
    target: Target,
    settings: EngineSettings,
    *,
    paths: dict[str, str],
    previous: Path | None = None,
    progress: Callable[..., None] | None = None,
) -> EngineExport:
    """Checks the ONNX files in a folder and builds their engines beside them, where this machine can.

    Args:
        folder: Holds the ONNX files.
        target: TensorRT or TensorRT-RTX.
        settings: How engines are built.
        paths: Module paths by ONNX node name.
        previous: An older artifact whose engines are kept if nothing that they depend on has changed.
        progress: Called while engines are built.

    Raises:
        UnsupportedError: The network is not legal, or cannot be built.
    """
    model = onnx.load(str(folder / MODEL_NAME))
    capabilities = settings.capabilities or DEFAULT_CAPABILITIES
    findings = require_legal(model, capabilities=capabilities, sparse=settings.sparse, paths=paths)
    library, reason = library_or_reason(target.runtime)
    engines: dict[str, Any] = {}
    report = precision_report(model, (), "graph")
    missing = {MODEL_NAME: reason} if reason else {}
    sources = [path for name in (MODEL_NAME, DENSE_NAME) if (path := folder / name).is_file()]
    if library is not None:
        for source in sources:
            plan = source.with_suffix(PLAN_SUFFIX)
            is_model = source.name == MODEL_NAME
            # The baseline is dense: sparse kernels are not for it.
            chosen = settings if is_model else settings.model_copy(update={"sparse": False})
            cached = previous / plan.name if previous is not None else None
            try:
                engines[plan.name], _ = ensure_engine(
                    source, plan, chosen, library, cached=cached, paths=paths, progress=progress
                )
            except UnsupportedError as error:
                if is_model:
                    raise
                missing[source.name] = f"{error.what}: {error.why}"  # such as FP32 products on compute capability 7.5
    if engines:
        report = report_from_json(engines[Path(MODEL_NAME).with_suffix(PLAN_SUFFIX).name]["precision"])
    facts = {"engines": engines, "engines_missing": missing, "findings": [finding.to_json() for finding in findings]}
    return EngineExport(report.kernels(), facts)


def module_paths(program: Program) -> dict[str, str]:
    """Where each node of a program comes from, by its name: module path and the user's source line."""
    return {node.name: _origin(node) for node in program.graph.nodes if _origin(node)}


def _origin(node: fx.Node) -> str:
    path = str(node.target) if node.op == "call_module" else str(node.meta.get("path") or "")
    source = str(node.meta.get("source") or "")
    return ", ".join(part for part in (path, source) if part)
