"""`secateur inspect`: what a recipe's model, a run and all that it holds, an artifact, an engine or an ONNX file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table

from ..compress.cost.model import count
from ..errors import UserError
from ..export.ort_kernels import kernel_report
from ..inputs import capture_on, load_data, load_model
from ..passes.program import Program
from ..recipe_file import load_recipe
from ..steps import PROGRAM, STEPS, TABLE
from .console import stdout_console
from .inspect_documents import find_document, inspect_document
from .inspect_engine import describe_engines, is_for_tensorrt, show_engines
from .ranking import describe_ranking, load_ranking, show_ranking

_PARTS = ("graph.json", "manifest.json", "weights.safetensors", "program.pt2", "junit.xml", "report.html")
"""Files that are a part of what the folder around them is."""

_RECIPES = (".yaml", ".yml", ".json")


def inspect(source: Path, *, as_json: bool) -> None:
    """Prints the groups of a program, the scores of a ranking, a plan, or the kernels or engines of an artifact.

    A file that is only a part of something (weights, a manifest, a report) stands for the folder that it lies in.

    Raises:
        UserError: Nothing that secateur knows is here.
    """
    if not source.exists():
        raise UserError("there is nothing here", where=str(source), hint="check the path")
    if source.name in _PARTS and not source.is_dir():
        source = source.parent
    if is_for_tensorrt(source):
        found = describe_engines(source)
        print(json.dumps(found, indent=1)) if as_json else show_engines(stdout_console(), found)
        return
    onnx_file = source / "model.onnx" if (source / "model.onnx").is_file() else source
    if onnx_file.suffix == ".onnx" and onnx_file.is_file():
        found = describe_onnx(onnx_file)
        print(json.dumps(found, indent=1)) if as_json else _show_onnx(found)
        return
    if source.name == TABLE or (source / TABLE).is_file():
        found = describe_ranking(*load_ranking(source.parent if source.name == TABLE else source))
        print(json.dumps(found, indent=1)) if as_json else show_ranking(stdout_console(), found)
        return
    document = find_document(source)
    if document is not None:
        inspect_document(stdout_console(), document, as_json=as_json)
        return
    found = describe_program(_program(source))
    print(json.dumps(found, indent=1)) if as_json else _show_program(found)


def describe_program(program: Program) -> dict[str, Any]:
    """Cost, groups and refusals, as plain data."""
    cost = count(program)
    return {
        "params": cost.params,
        "macs": cost.macs,
        "static_batch": program.static_batch,
        "dynamic": {name: list(axes) for name, axes in program.dynamic.items()},
        "notes": list(program.notes),
        "passes": list(program.history),
        "groups": [
            {
                "name": group.name,
                "width": group.width,
                "tensors": len(group.members),
                "frozen": str(group.frozen) if group.frozen else None,
                "hint": group.frozen.hint if group.frozen else None,
            }
            for group in program.groups
        ],
    }


def describe_onnx(path: Path) -> dict[str, Any]:
    """Which kernels the runtime will use, as plain data."""
    from dataclasses import asdict

    try:
        kernels = asdict(kernel_report(path))
    except UserError:
        raise
    except Exception as error:  # the exceptions of protobuf and onnxruntime have no common base
        raise UserError(
            "this is not an ONNX file that onnxruntime loads",
            where=str(path),
            why=(str(error).strip() or type(error).__name__).splitlines()[0],
            hint="export it again, or restore it from a copy",
        ) from error
    return {"file": str(path), "bytes": path.stat().st_size, "kernels": kernels}


def _program(source: Path) -> Program:
    why = "it is no recipe, run directory, program, ranking, plan, verdict, artifact, engine or ONNX file"
    if source.is_file():
        try:
            recipe = load_recipe(source)
        except UserError as error:
            if source.suffix in _RECIPES:
                raise
            why += f"; as a recipe: {error.what}"
        else:
            return capture_on(load_model(recipe.model), load_data(recipe.data).calibration, recipe.model.dynamic)
    for folder in (source, source / PROGRAM, source / STEPS["capture"].folder / PROGRAM):
        if (folder / "graph.json").is_file():
            return Program.load(folder)
    if (source / "manifest.json").is_file() and (source / "recipe.yaml").is_file():
        raise UserError(
            "no step of this run has finished", where=str(source), hint=f"secateur compile {source} continues it"
        )
    raise UserError(
        "nothing here that secateur knows",
        where=str(source),
        why=why,
        hint="check the path",
    )


def _show_program(found: dict[str, Any]) -> None:
    console = stdout_console()
    table = Table("group", "width", "tensors", "frozen", title_justify="left")
    table.title = f"{found['params']:,} parameters, {found['macs']:,} MACs a sample"
    for group in found["groups"]:
        table.add_row(group["name"], str(group["width"]), str(group["tensors"]), group["frozen"] or "")
    console.print(table)
    if found["static_batch"]:
        console.print(f"the batch size is fixed: {found['static_batch']}", markup=False)
    for name, axes in found["dynamic"].items():
        shown = ", ".join(map(str, axes))
        console.print(f"{name} may have any length along axis {shown}", markup=False)
    for note in found["notes"]:
        console.print(note, markup=False)


def _show_onnx(found: dict[str, Any]) -> None:
    table = Table("fact", "value", title=f"{found['file']}, {found['bytes']:,} bytes", title_justify="left")
    for key, value in found["kernels"].items():
        table.add_row(key, json.dumps(value) if isinstance(value, dict | list | tuple) else str(value))
    stdout_console().print(table)
