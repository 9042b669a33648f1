"""Gate: the artifact computes what the fake-quantised torch program computes.

Two runs are compared with it: the runtime as it will be used, with fused integer kernels, and the runtime executing
every quantisation operator literally in float. The first may differ by single codes where a value lies between two of
them; the second shows whether the file says what the program means. An artifact for a device that is not here has only
the second, on the CPU.
"""

import torch
from torch.utils import _pytree

from secateur.gates import ParityGate
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.measures import Comparison
from secateur.runtime_tests.subject import Subject


def test_parity(gate: ParityGate, subject: Subject, judge: Judge) -> None:
    fused, literal = _compare(subject, gate.samples)
    not_finite = sum(c.not_finite for c in (*fused, *literal))
    if not_finite:
        judge.broken(f"{not_finite} outputs are NaN or infinite")
    where = f"; on the CPU, {subject.unverified}" if subject.unverified else ""
    worst = min(literal if subject.unverified else fused, key=lambda c: c.agreement)
    judge(
        "agreement",
        100 * worst.agreement,
        None if gate.min_agreement is None else 100 * gate.min_agreement,
        at_least=True,
        unit="%",
        text=f"{worst.agreeing:,.10g} of {worst.samples:,} test samples have the same largest output{where}",
        details={"samples": worst.samples},
    )
    for check, comparisons, limit in (
        ("logit error", fused, gate.max_logit_error),
        ("logit error, literal", literal, gate.max_literal_error),
    ):
        if comparisons is fused and subject.unverified:
            judge.skipped(check, subject.unverified)
            continue
        worst = max(comparisons, key=lambda c: c.error)
        judge(
            check,
            worst.error,
            limit,
            unit="std",
            text=f"largest difference {worst.max_error:.2g}, outputs have std {worst.std:.3g}",
            details={"samples": worst.samples, "max_error": worst.max_error, "output_std": worst.std},
        )


def _compare(subject: Subject, samples: int) -> tuple[list[Comparison], list[Comparison]]:
    """Compares fused and literal execution with the torch program, on whole batches until `samples` were seen.

    Returns:
        One comparison for each output of the model: fused, and literal.
    """
    network = subject.program.module()
    fused_outputs: list[Comparison] = []
    literal_outputs: list[Comparison] = []
    runs = [(subject.runner(subject.model, literal=True), literal_outputs)]
    if not subject.unverified:
        runs.append((subject.runner(subject.model), fused_outputs))
    for args, kwargs, _ in subject.batches():
        with torch.no_grad():
            expected = [leaf.numpy() for leaf in _pytree.tree_leaves(network(*args, **kwargs))]
        feeds = subject.feeds(args, kwargs)
        for runner, comparisons in runs:
            comparisons.extend(Comparison() for _ in expected[len(comparisons) :])
            for comparison, reference, output in zip(comparisons, expected, runner(feeds), strict=True):
                comparison.update(reference, output)
        if literal_outputs[0].samples >= samples:
            break
    return fused_outputs, literal_outputs
