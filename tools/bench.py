"""`secateur bench`: latency and throughput of models and engines, side by side, in the manner of trtexec."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from ..errors import UserError
from ..export.artifact import PROGRAM_NAME, Artifact, is_artifact
from ..export.latency import LatencyReport, ModelLatency, measure
from ..export.session import ENGINE_SUFFIXES
from ..export.targets import TARGETS
from ..export.tensorrt.device import find_device
from ..export.tensorrt.engine_file import PLAN_SUFFIX
from ..passes.program import Program
from .console import stdout_console


def bench(
    sources: Sequence[Path], *, batches: Sequence[int], seconds: float, threads: int, provider: str, as_json: bool
) -> None:
    """Measures files in one process, interleaved, and prints a row for each and each batch size.

    Args:
        sources: ONNX files, engines, or an artifact (its baseline and its model).
        batches: Batch sizes.
        seconds: Time spent on each batch size.
        threads: Threads of onnxruntime.
        provider: What onnxruntime computes with.
        as_json: Print JSON.

    Raises:
        UserError: A source is none of these.
        EnvironmentLacksError: An engine needs a device that is not here.
    """
    paths = _paths(sources)
    report = measure(
        paths,
        _examples(sources),
        batches=batches,
        threads=threads,
        budget_seconds=seconds,
        provider=provider,
    )
    device = find_device() if any(path.suffix in ENGINE_SUFFIXES for path in paths.values()) else None
    if as_json:
        document = report.to_json() | {"device": device.to_json() if device else None}
        document["throughput"] = {
            str(entry.batch): {name: _per_second(entry.batch, found) for name, found in entry.models.items()}
            for entry in report.batches
        }
        print(json.dumps(document, indent=1))
        return
    where = device.name if device else str(report.environment["cpu"])
    stdout_console().print(_table(report, where))
    for warning in report.warnings:
        stdout_console().print(f"warning: {warning}", markup=False)
    for moment, values in report.environment.get("gpu_clocks", {}).items():
        text = ", ".join(f"{key} {value}" for key, value in values.items())
        stdout_console().print(f"clocks {moment}: {text}", markup=False)


def _paths(sources: Sequence[Path]) -> dict[str, Path]:
    """Files by the name that they are shown under.

    Raises:
        UserError: One of them is neither a file that runs nor an artifact.
    """
    found: dict[str, Path] = {}
    for source in sources:
        if source.is_dir() and is_artifact(source):
            found |= _artifact_paths(source)
        elif source.is_file() and source.suffix in (".onnx", *ENGINE_SUFFIXES):
            found[str(source)] = source
        else:
            raise UserError(
                "this is nothing that can be measured",
                where=str(source),
                why="it is no ONNX file, no engine and no artifact" if source.exists() else "it does not exist",
                hint=f"name files that end in {', '.join(('.onnx', *ENGINE_SUFFIXES))}, or an artifact",
            )
    return found


def _artifact_paths(folder: Path) -> dict[str, Path]:
    artifact = Artifact.load(folder)
    target = TARGETS.get(str(artifact.manifest.get("target")))
    files = [path for path in (artifact.dense, artifact.model) if path is not None]
    if target is not None and target.device != "cpu":
        files = [path.with_suffix(PLAN_SUFFIX) for path in files]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UserError("the artifact has no engine", where=str(missing[0]), hint=f"secateur engine {folder}")
    return {str(path): path for path in files}


def _examples(sources: Sequence[Path]) -> Mapping[str, np.ndarray] | None:
    """Example inputs from the program of an artifact, or of one that a file lies in: values that integers may take."""
    for source in sources:
        folder = (source if source.is_dir() else source.parent) / PROGRAM_NAME
        if (folder / "graph.json").is_file():
            program = Program.load(folder)
            names = [node.name for node in program.graph.nodes if node.op == "placeholder"]
            values = [v for v in (*program.example_args, *program.example_kwargs.values()) if hasattr(v, "numpy")]
            if len(names) == len(values):
                return {name: value.detach().cpu().numpy() for name, value in zip(names, values, strict=True)}
    return None


def _table(report: LatencyReport, where: str) -> Table:
    several = len(report.batches[0].models) > 1
    table = Table(title=f"latency in ms, on {where}", title_justify="left")
    headings = ["model", "batch", "samples/s", "median", "p10", "p90", "p99", "runs"]
    for heading in [*headings, f"times as fast as {report.baseline}"] if several else headings:
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for entry in report.batches:
        for name, found in entry.models.items():
            cells = [name, str(entry.batch), f"{_per_second(entry.batch, found):,.0f}"]
            cells += [f"{value:.4g}" for value in (found.median, found.p10, found.p90, found.p99)]
            cells.append(str(found.rounds))
            if several:
                ratio = found.speedup
                cells.append(
                    "" if name == report.baseline else f"{ratio.median:.3g} ({ratio.low:.3g} to {ratio.high:.3g})"
                )
            table.add_row(*cells)
    return table


def _per_second(batch: int, found: ModelLatency) -> float:
    return 1e3 * batch / found.median if found.median else 0.0
