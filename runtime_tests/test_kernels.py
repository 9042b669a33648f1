"""Gate: the convolutions really run as integer kernels, read from the graph that the runtime makes of the model."""

import onnx

from secateur.export.ort_kernels import KernelReport, kernel_report
from secateur.export.tensorrt.engine_file import read_engine
from secateur.export.tensorrt.layers import precision_report, report_from_json
from secateur.gates import KernelGate
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.subject import Subject


def test_kernels(gate: KernelGate, subject: Subject, judge: Judge) -> None:
    subject.runner(subject.model)  # says why, if the runtime does not load it
    report, source = _kernels(subject)
    convs = report.integer_convs + report.float_convs
    matmuls = report.integer_matmuls + report.float_matmuls
    judge(
        "integer convolutions",
        100 * report.conv_share,
        None if gate.min_integer_share is None else 100 * gate.min_integer_share,
        at_least=True,
        unit="%",
        text=f"{report.integer_convs} of {convs} convolutions, {report.integer_matmuls} of {matmuls} matrix products"
        + source,
        details=report.to_json(),
    )


def _kernels(subject: Subject) -> tuple[KernelReport, str]:
    """The kernels, and where that is known from: for an engine, what its builder or its inspector listed."""
    if not subject.for_device:
        return kernel_report(subject.model), ""
    plan = subject.engine(subject.model)
    if not plan.is_file():
        report = precision_report(onnx.load(str(subject.model)), (), "graph")
        return report.kernels(), "; asked for by the file, no engine was built"
    report = report_from_json(read_engine(plan).facts["precision"])
    return report.kernels(), f"; from the {report.source} of the engine"
