"""What an artifact for TensorRT, or an engine by itself, is: a part of `secateur inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from rich.console import Console
from rich.table import Table

from ..errors import EnvironmentLacksError, UserError
from ..export.artifact import Artifact, is_artifact
from ..export.manifest import read_manifest
from ..export.session import ENGINE_SUFFIXES
from ..export.targets import TARGETS
from ..export.tensorrt.device import find_device
from ..export.tensorrt.engine_file import PLAN_SUFFIX, engine_for, read_engine
from ..export.tensorrt.layers import precision_report, report_from_json


def is_for_tensorrt(source: Path) -> bool:
    """Whether a path is an artifact for TensorRT or TensorRT-RTX, or one engine."""
    if source.is_file():
        return source.suffix in ENGINE_SUFFIXES
    if not source.is_dir() or not is_artifact(source):
        return False
    target = TARGETS.get(str(read_manifest(source).get("target")))
    return target is not None and target.dialect == "tensorrt"


def describe_engines(source: Path) -> dict[str, Any]:
    """Engines, what their layers compute on and what is remarked, as plain data.

    Args:
        source: An artifact, or one engine with its key beside it.

    Raises:
        UserError: The artifact is damaged, or the engine is foreign or was replaced.
    """
    if source.is_file():
        onnx_file = source.with_suffix(".onnx")
        found = _engine(source, onnx_file if onnx_file.is_file() else None)
        precision = dict(read_engine(source).facts["precision"])
        return {
            "file": str(source),
            "engines": {source.name: found},
            "missing": {},
            "findings": [],
            **_layers(precision),
        }
    artifact = Artifact.load(source)
    files = [path for path in (artifact.model, artifact.dense) if path is not None]
    plans = {path.with_suffix(PLAN_SUFFIX): path for path in files}
    if (model_plan := artifact.model.with_suffix(PLAN_SUFFIX)).is_file():
        precision = dict(read_engine(model_plan).facts["precision"])
    else:
        precision = precision_report(onnx.load(str(artifact.model)), (), "graph").to_json()
    return {
        "file": str(source),
        "target": artifact.manifest["target"],
        "onnx": {path.name: path.stat().st_size for path in files},
        "engines": {plan.name: _engine(plan, path) for plan, path in plans.items() if plan.is_file()},
        "missing": dict(artifact.manifest.get("engines_missing", {})),
        "findings": list(artifact.manifest.get("findings", [])),
        **_layers(precision),
    }


def show_engines(console: Console, found: Mapping[str, Any]) -> None:
    """Prints what `describe_engines` found."""
    table = Table(title=_title(found), title_justify="left")
    for heading in ("engine", "kB", "INT8 layers", "batch", "compute capabilities", "built by", "state"):
        table.add_column(heading, justify="right" if heading == "kB" else "left")
    for name, engine in found["engines"].items():
        table.add_row(
            name,
            f"{engine['bytes'] / 1000:,.0f}",
            f"{engine['integer']} of {engine['total']}",
            " to ".join(str(size) for size in engine["batch"][::2]),
            ", ".join(engine["capabilities"]),
            " ".join(
                filter(None, (engine["library"], engine["version"], engine["device"] and f"on {engine['device']}"))
            ),
            engine["state"],
        )
    if found["engines"]:
        console.print(table)
    else:
        console.print(_title(found), markup=False)
    for name, why in found["missing"].items():
        console.print(f"no engine of {name}: {why}", markup=False, soft_wrap=True)
    console.print(
        f"INT8: {found['integer']} of {found['total']} layers, as told by the {found['source']}", markup=False
    )
    for entry in found["float"]:
        console.print(f"not INT8: {entry['node']} ({entry['op']}): {entry['reason']}", markup=False, soft_wrap=True)
    for finding in found["findings"]:
        where = ", ".join(filter(None, (finding["node"], finding["path"])))
        console.print(f"remark: {where}: {finding['reason']}; {finding['fix']}", markup=False, soft_wrap=True)


def _engine(plan: Path, onnx_file: Path | None) -> dict[str, Any]:
    """One engine, and whether it may be run here."""
    held = read_engine(plan)
    key, facts = held.key, held.facts
    device = find_device()
    try:
        engine_for(plan, onnx_file, device)
        state = "fits" if device else "fits its file; there is no GPU here"
    except (UserError, EnvironmentLacksError) as error:
        state = f"refused: {': '.join(part for part in (error.what, error.why) if part)}"
    return {
        "bytes": facts["bytes"],
        "library": key.library,
        "version": key.version,
        "capabilities": list(key.capabilities),
        "device": key.device,
        "batch": list(key.flags["batch"]),
        "settings": dict(key.flags),
        "seconds": facts["seconds"],
        "integer": facts["precision"]["integer"],
        "total": facts["precision"]["total"],
        "layers": dict(facts["precision"]["layers"]),
        "warnings": list(facts["warnings"]),
        "state": state,
    }


def _layers(precision: Mapping[str, Any]) -> dict[str, Any]:
    """Which convolutions and matrix products are integer, and why the others are not."""
    report = report_from_json(precision)
    return {
        "source": {"graph": "ONNX file", "inspector": "engine inspector"}.get(report.source, report.source),
        "integer": precision["integer"],
        "total": precision["total"],
        "float": [{"node": e.node, "op": e.op, "reason": e.reason} for e in report.float_entries],
    }


def _title(found: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {size / 1000:,.0f} kB" for name, size in found.get("onnx", {}).items())
    return "; ".join(filter(None, (found["file"] + (f", for {found['target']}" if "target" in found else ""), sizes)))
