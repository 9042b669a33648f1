"""Gate: the convolutions really run as integer kernels, read from the graph that the runtime makes of the model."""

from secateur.export.ort_kernels import kernel_report
from secateur.gates import KernelGate
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.subject import Subject


def test_kernels(gate: KernelGate, subject: Subject, judge: Judge) -> None:
    subject.runner(subject.model)  # says why, if the runtime does not load it
    report = kernel_report(subject.model)
    convs = report.integer_convs + report.float_convs
    matmuls = report.integer_matmuls + report.float_matmuls
    judge(
        "integer convolutions",
        100 * report.conv_share,
        None if gate.min_integer_share is None else 100 * gate.min_integer_share,
        at_least=True,
        unit="%",
        text=f"{report.integer_convs} of {convs} convolutions, {report.integer_matmuls} of {matmuls} matrix products",
        details=report.to_json(),
    )
