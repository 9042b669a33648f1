"""Builds engines of one network, dense and pruned, and compares what the files compute on the CPU."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.export.lower import lower_program
from secateur.export.ort_session import open_session
from secateur.export.targets import TARGETS, Target
from secateur.export.tensorrt.engine_file import ensure_engine
from secateur.export.tensorrt.export_engine import module_paths
from secateur.export.tensorrt.library import Library
from secateur.export.tensorrt.settings import EngineSettings
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.prune import apply

from .networks import Network, settle


@dataclass(frozen=True)
class Form:
    """A network as it may be deployed.

    Attributes:
        name: For the table.
        pruned: At half its widths.
        quantised: On INT8.
        half: What is not on INT8 is FP16; else FP32.
    """

    name: str
    pruned: bool = False
    quantised: bool = False
    half: bool = True


INT8 = Form("INT8", quantised=True)
FORMS = (
    Form("FP32", half=False),
    Form("FP16"),
    INT8,
    Form("FP16, pruned", pruned=True),
    Form("INT8, pruned", pruned=True, quantised=True),
)
"""What is built; the first is what the others are compared with."""


@dataclass(frozen=True)
class Row:
    """One engine.

    Attributes:
        network: Name of the network.
        form: Name of its form.
        onnx_bytes: Size of the ONNX file.
        plan_bytes: Size of the engine.
        seconds: Time of the build.
        cpu_seconds: Time that the processor spent on it.
        integer: Convolutions and matrix products on INT8.
        total: All convolutions and matrix products.
        error: Root mean square difference of the file's outputs on the CPU from the program's, relative to their
            standard deviation.
        plan: The engine.
        float_reasons: Why layers are not integer, with how many there are of each.
    """

    network: str
    form: str
    onnx_bytes: int
    plan_bytes: int
    seconds: float
    cpu_seconds: float
    integer: int
    total: int
    error: float
    plan: Path
    float_reasons: dict[str, int]


def build_all(
    network: Network, library: Library, settings: EngineSettings, folder: Path, forms: Sequence[Form] = FORMS
) -> Iterator[Row]:
    """Builds a network in several forms.

    Args:
        network: What.
        library: With what.
        settings: How.
        folder: Where files go.
        forms: Which forms.

    Yields:
        A row for each form, when its engine is there.
    """
    torch.manual_seed(0)
    x = network.inputs(network.samples)
    dense = capture(settle(network.make(), x), (x,)).eval()
    target = TARGETS["tensorrt-rtx" if library.ahead_of_time else "tensorrt"]
    stem = network.name.split(",")[0].replace(" ", "-").lower()
    for form in forms:
        program = halved(dense, x) if form.pruned else dense
        if form.quantised:
            prepared, _ = prepare(program, target.scheme)
            program = calibrate(prepared, [(x, torch.zeros(len(x)))], samples=len(x)).eval()
        path = folder / f"{stem}-{form.name.replace(', ', '-').lower()}.onnx"
        profile = dataclasses.replace(target, half=form.half)
        yield _build(network, form, program, profile, path, library, settings)


def halved(program: Program, inputs: torch.Tensor, grid: int = 16) -> Program:
    """The program with half the units of every group that stays on the grid; which ones is left to chance."""
    keep = {}
    for group in program.groups:
        kept = -(-group.width // (2 * grid)) * grid
        if group.frozen is None and kept < group.width:
            keep[group.name] = list(range(kept))
    smaller = apply(program, keep)
    settle(smaller.graph_module, inputs)
    return smaller.eval()


def _build(
    network: Network,
    form: Form,
    program: Program,
    target: Target,
    path: Path,
    library: Library,
    settings: EngineSettings,
) -> Row:
    onnx.save(lower_program(program, target).model, path)
    plan = path.with_suffix(".plan")
    facts, _ = ensure_engine(path, plan, settings, library, paths=module_paths(program))
    found = facts["precision"]
    floats = Counter(entry["reason"] for entry in found["entries"] if not entry["integer"])
    return Row(
        network.name,
        form.name,
        path.stat().st_size,
        facts["bytes"],
        facts["seconds"],
        facts["cpu_seconds"],
        found["integer"],
        found["total"],
        _difference(program, path, network.inputs(2)),
        plan,
        dict(floats) if form.quantised else {},
    )


def _difference(program: Program, path: Path, x: torch.Tensor) -> float:
    """How far the file is from the program that it was lowered from, taken literally on the CPU."""
    session = open_session(path, literal=True)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = program.module()(x).numpy()
    return float(np.sqrt(np.mean((np.asarray(got) - expected) ** 2)) / expected.std())
