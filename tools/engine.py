"""`secateur engine`: builds the engines of an artifact on this machine, unless those that it has are the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.table import Table

from ..errors import UnsupportedError, UserError
from ..export.artifact import Artifact
from ..export.manifest import describe_files, write_manifest
from ..export.targets import TARGETS
from ..export.tensorrt.engine_file import PLAN_SUFFIX, ensure_engine
from ..export.tensorrt.export_engine import module_paths
from ..export.tensorrt.layers import report_from_json
from ..export.tensorrt.library import load_library
from ..export.tensorrt.settings import EngineSettings
from ..validation import explain
from .console import ConsoleReporter, stdout_console


def engine(source: Path, options: dict[str, Any], *, timing_cache: Path | None, as_json: bool, quiet: bool) -> None:
    """Builds and notes the engines in the manifest, and prints what was built.

    Args:
        source: The artifact.
        options: Fields of `EngineSettings`; those left out are the engine's that is there, else the defaults.
        timing_cache: File of measured kernels; TensorRT only.
        as_json: Print JSON.
        quiet: No progress.

    Raises:
        UserError: It is no artifact for TensorRT, or an option is wrong.
        UnsupportedError: The network cannot be built.
        EnvironmentLacksError: The library is not installed, or builds on a GPU and there is none.
    """
    artifact = Artifact.load(source)
    manifest = dict(artifact.manifest)
    target = TARGETS.get(str(manifest.get("target")))
    if target is None or target.dialect != "tensorrt":
        raise UserError(
            f"an artifact for {manifest.get('target')} has no engine",
            where=str(source),
            hint="quantise and export for the target tensorrt or tensorrt-rtx",
        )
    library = load_library(target.runtime)
    settings = _settings(manifest, options)
    paths = module_paths(artifact.program())
    engines, missing, built = {}, {}, []
    with ConsoleReporter(quiet=quiet) as reporter:
        for onnx_file in (artifact.model, artifact.dense):
            if onnx_file is None:
                continue
            plan = onnx_file.with_suffix(PLAN_SUFFIX)
            dense = onnx_file == artifact.dense
            chosen = settings.model_copy(update={"sparse": False}) if dense else settings
            reporter.step("engine", "started", plan.name)
            try:
                engines[plan.name], now = ensure_engine(
                    onnx_file,
                    plan,
                    chosen,
                    library,
                    paths=paths,
                    timing_cache=timing_cache,
                    progress=lambda done, total, **info: reporter.progress("engine", done, total, **info),
                )
                built += [plan.name] if now else []
            except UnsupportedError as error:
                if not dense:
                    raise
                missing[onnx_file.name] = f"{error.what}: {error.why}"
    report = report_from_json(engines[artifact.model.with_suffix(PLAN_SUFFIX).name]["precision"])
    manifest |= {"engines": engines, "engines_missing": missing, "kernels": report.kernels().to_json()}
    write_manifest(source, manifest | {"files": describe_files(source)})
    if as_json:
        print(json.dumps({"engines": engines, "built": built, "missing": missing}, indent=1))
        return
    console = stdout_console()
    console.print(_table(engines, built))
    for entry in report.float_entries:
        console.print(f"not INT8: {entry.node} ({entry.op}): {entry.reason}", markup=False, soft_wrap=True)
    for name, why in missing.items():
        console.print(f"no engine of {name}: {why}", markup=False, soft_wrap=True)


def _settings(manifest: dict[str, Any], options: dict[str, Any]) -> EngineSettings:
    """The settings of the engine that is there, changed by the options."""
    held = next((e for name, e in manifest.get("engines", {}).items() if name.startswith("model")), None)
    before = dict(held["key"]["flags"]) if held else {}
    if held and not held["key"]["device"]:
        before["capabilities"] = held["key"]["capabilities"]  # chosen, not those of the GPU that it was built on
    try:
        return EngineSettings.model_validate({**before, **options})
    except ValidationError as error:
        raise UserError(
            "the engine's settings have errors", where="engine", why=explain(error, EngineSettings)
        ) from None


def _table(engines: dict[str, Any], built: list[str]) -> Table:
    table = Table(title="engines", title_justify="left")
    for heading in ("engine", "", "kB", "seconds", "INT8 layers", "compute capabilities", "built by"):
        table.add_column(heading, justify="right" if heading in {"kB", "seconds"} else "left")
    for name, facts in engines.items():
        key, precision = facts["key"], facts["precision"]
        table.add_row(
            name,
            "built" if name in built else "kept",
            f"{facts['bytes'] / 1000:,.0f}",
            f"{facts['seconds']:.2f}",
            f"{precision['integer']} of {precision['total']}",
            ", ".join(key["capabilities"]),
            f"{key['library']} {key['version']}",
        )
    return table
