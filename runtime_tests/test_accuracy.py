"""Gate: the metric of the artifact itself on all test batches, and its drop below the dense baseline."""

import numpy as np

from secateur.gates import AccuracyGate
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.measures import mean_std_error, paired_drop
from secateur.runtime_tests.subject import Subject


def test_accuracy(gate: AccuracyGate, subject: Subject, judge: Judge) -> None:
    if subject.check.data is None and gate.max_drop is None and gate.min is None:
        judge.cannot("metric", "not measured: no test data was given")
        return
    runners = [subject.runner(path) for path in (subject.model, subject.dense) if path]
    found: list[list[np.ndarray]] = [[] for _ in runners]
    for args, kwargs, target in subject.batches():
        feeds = subject.feeds(args, kwargs)
        for runner, scores in zip(runners, found, strict=True):
            scores.append(subject.scores(runner, feeds, target))
    model, *dense = (np.concatenate(scores) for scores in found)

    name, error = subject.check.metric, mean_std_error(model)
    where = f"; on the CPU, {subject.unverified}" if subject.unverified else ""
    judge(
        name,
        100 * float(model.mean()),
        gate.min,
        at_least=True,
        unit="%",
        text=f"± {error:.2f} (standard error), {model.size:,} test samples{where}",
        details={"samples": model.size, "model": float(model.mean()), "std_error": error},
    )
    if not dense:
        judge.cannot("drop", "there is no dense.onnx to compare with", gate.max_drop, unit="points")
        return
    paired = paired_drop(dense[0], model)
    judge(
        "drop",
        paired.drop,
        gate.max_drop,
        unit="points",
        text=f"± {paired.std_error:.2f} (paired): dense {100 * dense[0].mean():.2f}%, "
        f"{paired.lost} samples lost, {paired.gained} gained",
        details={
            "samples": model.size,
            "model": float(model.mean()),
            "dense": float(dense[0].mean()),
            "dense_std_error": mean_std_error(dense[0]),
            "std_error": paired.std_error,
            "lost": paired.lost,
            "gained": paired.gained,
        },
    )
