"""A run as its report sees it: a ResNet-20 with made-up but plausible numbers, the same every time."""

import numpy as np

from secateur.tools.report import GroupRow, ReportData, Stage
from secateur.verdict import GateResult, Verdict

KERNELS = {
    "integer": 21,
    "total": 21,
    "integer_matmuls": 0,
    "float_matmuls": 1,
    "float_nodes": [{"name": "linear", "op": "Gemm", "reason": "its input is not quantised"}],
}


def timing(median: float) -> dict[str, float]:
    return {"median": median, "p10": 0.98 * median, "p90": 1.05 * median, "p99": 1.2 * median}


def latency(batch: int, dense: float, model: float, limit: float = 60.0) -> GateResult:
    ratio = model / dense
    return GateResult(
        "latency",
        f"batch {batch}",
        "passed" if 100 * ratio <= limit else "failed",
        100 * ratio,
        limit,
        unit="%",
        text=f"{1e3 * model:.3g} ms against {1e3 * dense:.3g} ms",
        details={
            "batch": batch,
            "dense": dense,
            "model": model,
            "dense_timing": timing(dense),
            "model_timing": timing(model),
            "ratio": ratio,
            "ratio_interval": [ratio * 0.985, ratio * 1.017],
            "rounds": 480,
            "environment": {"threads": 1},
        },
    )


def groups(seed: int = 0) -> list[GroupRow]:
    rng = np.random.default_rng(seed)
    found = [
        GroupRow(
            "conv1", 16, 16, reason="an operation without a rule reads it (aten.cumsum at model.py:31)", frozen=True
        )
    ]
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        names = [f"layer{stage}.{block}.conv1" for block in range(3)] + [f"layer{stage}.0.conv2"]
        for name in names:
            scores = rng.lognormal(-7 + 0.4 * stage, 1.4, width)
            if name.endswith("0.conv1"):
                scores[:2] = -1e-5
            errors = 0.6 * np.abs(scores) * rng.uniform(0.3, 1.0, width)
            removed = np.argsort(scores)[: int(width * rng.uniform(0.2, 0.6)) // 4 * 4].tolist()
            found.append(
                GroupRow(
                    name,
                    width,
                    width - len(removed),
                    float(scores[removed].sum()),
                    float(np.hypot.reduce(errors[removed])),
                    "least loss for each multiply-accumulate; aligned to 4",
                    scores=scores.tolist(),
                    score_errors=errors.tolist(),
                    removed=removed,
                )
            )
    return found


def report_data(passed: bool = True) -> ReportData:
    drop = 0.61 if passed else 1.74
    gates = (
        GateResult("legality", "files that differ", "passed", 0, 0, text="all 5 files have the sha256 of the manifest"),
        GateResult(
            "accuracy", "top1", "measured", 92.60 - drop, unit="%", text="± 0.27 (standard error), 10,000 test samples"
        ),
        GateResult(
            "accuracy", "drop", "passed" if passed else "failed", drop, 1.0, unit="points", text="± 0.21 (paired)"
        ),
        GateResult("parity", "agreement", "passed", 99.8, 99.0, True, "%", "998 of 1,000 samples"),
        latency(1, 4.612e-4, 1.771e-4),
        latency(32, 1.283e-2, 3.02e-3),
        GateResult("size", "model.onnx", "measured", 187.3, unit="kB", text="17.1% of the dense file"),
        GateResult("kernels", "integer convolutions", "passed", 100.0, 100.0, True, "%", "21 of 21", KERNELS),
    )
    verdict = Verdict("runs/r20/07-export", gates, {"onnxruntime": "1.31.1"}, 31.2)
    dense = {"params": 269_722, "macs": 40_551_424}
    small = {"params": 140_122, "macs": 20_018_176}
    return ReportData(
        title="cifar10_resnet20 <ort-cpu>",
        command="secateur compile examples/cifar10_resnet20.yaml --max-macs 50% --out runs/r20",
        stages=(
            Stage("dense FP32", 0.9260, **dense, bytes=1_095_312, latency={1: 4.612e-4, 32: 1.283e-2}),
            Stage("pruned", 0.4127, **small),
            Stage("batch norm re-estimated", 0.8431, **small),
            Stage("healed", 0.9214, **small),
            Stage("INT8 artifact", 0.9260 - drop / 100, **small, bytes=187_344, latency={1: 1.771e-4, 32: 3.02e-3}),
        ),
        groups=groups(),
        verdict=verdict,
        facts=(
            ("processor", "AMD EPYC 9B45, AVX512-VNNI, 1 thread"),
            ("versions", "secateur 0.1.0, torch 2.13.0, onnx 1.23.2, onnxruntime 1.31.1, Python 3.11.7"),
            ("sensitivity", "hap, 512 samples, 64 probes, seed 0"),
            ("test set", "10,000 images"),
        ),
        notes=("conv1 stays whole: aten.cumsum has no rule (model.py:31)",),
        files={
            "model.onnx": {"sha256": "5f0c" * 16, "bytes": 187_344},
            "dense.onnx": {"sha256": "a1b2" * 16, "bytes": 1_095_312},
        },
    )
