"""Builds FP32, FP16 and INT8 engines of one network, and compares what the files compute on the CPU."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.export.lower import lower_program
from secateur.export.ort_session import open_session
from secateur.export.targets import TARGETS
from secateur.export.tensorrt.engine_file import ensure_engine
from secateur.export.tensorrt.export_engine import module_paths
from secateur.export.tensorrt.library import Library
from secateur.export.tensorrt.settings import EngineSettings
from secateur.passes.capture import capture
from secateur.passes.program import Program

from .networks import Network, settle


@dataclass(frozen=True)
class Row:
    """One engine.

    Attributes:
        network: Name of the network.
        precision: FP32, FP16 or INT8.
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
    precision: str
    onnx_bytes: int
    plan_bytes: int
    seconds: float
    cpu_seconds: float
    integer: int
    total: int
    error: float
    plan: Path
    float_reasons: dict[str, int]


def build_all(network: Network, library: Library, settings: EngineSettings, folder: Path) -> list[Row]:
    """Builds every precision of a network.

    Args:
        network: What.
        library: With what.
        settings: How.
        folder: Where files go.
    """
    torch.manual_seed(0)
    x = network.inputs(network.samples)
    program = capture(settle(network.make(), x), (x,)).eval()
    target = TARGETS["tensorrt-rtx" if library.ahead_of_time else "tensorrt"]
    prepared, _ = prepare(program, target.scheme)
    quantised = calibrate(prepared, [(x, torch.zeros(len(x)))], samples=len(x)).eval()
    forms: dict[str, tuple[Program, Any]] = {
        "FP32": (program, dataclasses.replace(target, half=False)),
        "FP16": (program, target),
        "INT8": (quantised, target),
    }
    rows = []
    for precision, (form, profile) in forms.items():
        path = folder / f"{network.name.split(',')[0].replace(' ', '-').lower()}-{precision.lower()}.onnx"
        onnx.save(lower_program(form, profile).model, path)
        plan = path.with_suffix(".plan")
        facts, _ = ensure_engine(path, plan, settings, library, paths=module_paths(form))
        found = facts["precision"]
        reasons: dict[str, int] = {}
        for entry in found["entries"]:
            if not entry["integer"]:
                reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
        rows.append(
            Row(
                network.name,
                precision,
                path.stat().st_size,
                facts["bytes"],
                facts["seconds"],
                facts["cpu_seconds"],
                found["integer"],
                found["total"],
                _difference(form, path, network.inputs(2)),
                plan,
                reasons if precision == "INT8" else {},
            )
        )
    return rows


def _difference(program: Program, path: Path, x: torch.Tensor) -> float:
    """How far the file is from the program that it was lowered from, taken literally on the CPU."""
    session = open_session(path, literal=True)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        expected = program.module()(x).numpy()
    return float(np.sqrt(np.mean((np.asarray(got) - expected) ** 2)) / expected.std())
