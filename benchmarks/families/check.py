"""One model through capture, pruning, healing, export and onnxruntime; every stage with what came out of it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.api import apply, capture, heal, mask
from secateur.errors import UserError
from secateur.export.export import export
from secateur.export.lower import output_names
from secateur.export.ort_session import open_session, run
from secateur.passes.program import Program
from secateur.passes.shapes import batch_size, flatten_inputs, resize_batch
from secateur.passes.verify import verify

from .case import Case
from .shares import shares

STAGES = ("capture", "groups", "apply", "heal", "export")
TOLERANCE = 1e-4
"""Largest accepted difference, relative to the largest output; float32 networks of a hundred layers reach 1e-5."""


def check(case: Case) -> dict[str, Any]:
    """Runs the stages in order; what follows a stage that fails is left out.

    Returns:
        `name`, `library`, `family`, and for every stage that ran `{"status": ..., "seconds": ..., facts}`: "ok",
        "wrong" (a difference above the tolerance), "refused" (by secateur, with its message) or "error" (anything
        else, with the exception).
    """
    torch.manual_seed(0)
    report: dict[str, Any] = {"name": case.name, "library": case.library, "family": case.family, "stages": {}}
    model, inputs = case.build()
    work: dict[str, Any] = {"model": model.eval(), "inputs": inputs}
    for stage in STAGES:
        begun = time.monotonic()
        result = _guarded(_STAGES[stage], work)
        report["stages"][stage] = {**result, "seconds": round(time.monotonic() - begun, 1)}
        if result["status"] in ("refused", "error"):
            break
    return report


def _guarded(stage: Callable[[dict[str, Any]], dict[str, Any]], work: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"status": "ok", **stage(work)}
    except UserError as refusal:
        parts = {"what": refusal.what, "where": refusal.where, "why": refusal.why, "hint": refusal.hint}
        return {"status": "refused", **{key: text for key, text in parts.items() if text}}
    except Exception as error:
        lines = str(error).strip().splitlines()
        return {"status": "error", "what": f"{type(error).__name__}: {lines[0] if lines else ''}"}


def _capture(work: dict[str, Any]) -> dict[str, Any]:
    program = work["program"] = capture(work["model"], work["inputs"])
    del work["model"]
    return {
        "params": sum(p.numel() for p in program.module().parameters()),
        "nodes": len(program.graph.nodes),
        "static_batch": program.static_batch,
        "notes": list(program.notes),
    }


def _groups(work: dict[str, Any]) -> dict[str, Any]:
    program: Program = work["program"]
    found, free = shares(program), [group for group in program.groups if group.frozen is None]
    return {
        "groups": len(program.groups),
        "prunable_groups": len(free),
        "units": sum(group.width for group in free),
        "prunable": found.prunable,
        "frozen": found.frozen,
        "unlabelled": found.unlabelled,
        "examples": {
            group.frozen.reason: f"{group.name}: {group.frozen}" for group in program.groups if group.frozen is not None
        },
    }


def _apply(work: dict[str, Any]) -> dict[str, Any]:
    """Half of every group goes, at random; the small network must compute what the silenced one computes."""
    program: Program = work["program"]
    random = np.random.default_rng(0)
    keep = {
        group.name: np.sort(random.permutation(group.width)[: max(1, group.width // 2)])
        for group in program.groups
        if group.frozen is None
    }
    if not keep:
        work["smaller"] = program
        return {"status": "refused", "what": "nothing can be removed", "why": _most_common_reason(program)}
    smaller = work["smaller"] = apply(program, keep)
    verify(smaller)
    masked = mask(program, keep)
    apart = [_apart(smaller.module(), masked.module(), *inputs) for inputs in _batches(program)]
    moved = _apart(program.module(), masked.module(), program.example_args, dict(program.example_kwargs))
    before, after = (sum(p.numel() for p in x.module().parameters()) for x in (program, smaller))
    return {
        "status": "ok" if max(apart) <= TOLERANCE else "wrong",
        "difference": max(apart),
        "batches": len(apart),
        "moved": moved,
        "left": after / before,
    }


def _heal(work: dict[str, Any]) -> dict[str, Any]:
    """One optimiser step of the trainer on all outputs."""
    program: Program = work["smaller"]
    data = [((program.example_args, dict(program.example_kwargs)), torch.zeros(1))]
    settings = {"max_steps": 1, "epochs": 1.0, "lr": 1e-4, "clip_grad": 1.0, "precision": "fp32"}
    batches = [(inputs[0] if not inputs[1] else inputs[1], target) for inputs, target in data]
    healed = heal(program, batches, _power, **settings)
    changed = sum(
        not torch.equal(a, b) for a, b in zip(program.module().parameters(), healed.module().parameters(), strict=True)
    )
    work["smaller"] = healed
    return {"trained": changed / max(1, len(list(program.module().parameters())))}


def _export(work: dict[str, Any]) -> dict[str, Any]:
    """The artifact, read back, and its ONNX file in onnxruntime against the program."""
    program: Program = work["smaller"]
    with tempfile.TemporaryDirectory() as folder:
        artifact = export(program, Path(folder) / "artifact")
        loaded = artifact.program()
        session = open_session(artifact.model)
        fallbacks = [fallback["operation"] for fallback in artifact.manifest["fallbacks"]]
        names = {value.name for value in session.get_inputs()}
        inputs = [node.name for node in program.graph.nodes if node.op == "placeholder"]
        differences, reloaded = [], []
        for args, kwargs in _batches(program):
            reloaded.append(_apart(loaded.module(), program.module(), args, kwargs))
            leaves = flatten_inputs(program.graph_module, args, kwargs)
            feed = {
                name: leaf.numpy()
                for name, leaf in zip(inputs, leaves, strict=True)
                if isinstance(leaf, Tensor) and name in names
            }
            with torch.no_grad():
                output = program.module()(*args, **kwargs)
            wanted = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
            answers = run(session, feed)
            got = [torch.from_numpy(answers[name]) for name in output_names(program)]
            differences.append(_difference(got, wanted))
    good = max(differences) <= 10 * TOLERANCE and max(reloaded) == 0
    return {
        "status": "ok" if good else "wrong",
        "difference": max(differences),
        "reloaded": max(reloaded),
        "fallbacks": fallbacks,
    }


def _batches(program: Program) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The examples, and where the batch is dynamic the same at another size."""
    args, kwargs = program.example_args, dict(program.example_kwargs)
    size = batch_size(args, kwargs)
    more = [] if program.static_batch or size is None else [resize_batch(args, kwargs, size + 1)]
    return [(args, kwargs), *more]


def _apart(a: Any, b: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    with torch.no_grad():
        return _difference(*(pytree.tree_leaves(network(*args, **kwargs)) for network in (a, b)))


def _difference(got: list[Any], wanted: list[Any]) -> float:
    """Largest difference relative to the largest value of each output; infinite where something is missing."""
    if len(got) != len(wanted):
        return float("inf")
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
                return float("inf")
            if b.numel():
                a, b = a.double().nan_to_num(), b.double().nan_to_num()
                worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1e-6)))
    return worst


def _power(output: Any, _: Any) -> Tensor:
    """A loss that every output takes part in."""
    leaves = [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
    return torch.stack([x.pow(2).mean() for x in leaves]).mean()


def _most_common_reason(program: Program) -> str:
    found = shares(program).frozen
    return next(iter(found), "no unit was found")


_STAGES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "capture": _capture,
    "groups": _groups,
    "apply": _apply,
    "heal": _heal,
    "export": _export,
}
