"""Gate: the size of the model file."""

from secateur.gates import SizeGate
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.subject import Subject


def test_size(gate: SizeGate, subject: Subject, judge: Judge) -> None:
    size = subject.model.stat().st_size
    dense = subject.dense.stat().st_size if subject.dense else None
    details = {"model": size, "dense": dense}
    plan = subject.engine(subject.model)
    if subject.for_device and plan.is_file():
        judge(plan.name, plan.stat().st_size / 1000, unit="kB", text="the engine, with its compiled kernels")
    limit = gate.limit
    if limit is not None and limit.relative:
        if dense is None:
            judge.cannot(
                "model.onnx", f"{gate.max} of the dense baseline: there is no dense.onnx", 100 * limit.value, unit="%"
            )
        else:
            text = f"{size:,} of {dense:,} bytes"
            judge("model.onnx", 100 * size / dense, 100 * limit.value, unit="%", text=text, details=details)
        return
    text = f"{100 * size / dense:.1f}% of the dense file" if dense else ""
    judge("model.onnx", size / 1000, limit and limit.value / 1000, unit="kB", text=text, details=details)
