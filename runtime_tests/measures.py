"""What the gates compute from the outputs of two models on the same samples: pure functions on arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PairedDrop:
    """By how much a model scores below a baseline on the same samples, in points (hundredths of the metric).

    Attributes:
        drop: Mean of baseline minus model, times 100.
        std_error: Its standard error; for a metric of zeros and ones it is McNemar's,
            `sqrt(lost + gained - (lost - gained)^2 / n) / n`. Far below that of two independent samples.
        lost: Samples on which only the baseline is better.
        gained: Samples on which only the model is better.
    """

    drop: float
    std_error: float
    lost: int
    gained: int


def paired_drop(baseline: np.ndarray, model: np.ndarray) -> PairedDrop:
    """Compares per-sample scores, each float [samples], higher is better."""
    difference = baseline.astype(np.float64) - model.astype(np.float64)
    return PairedDrop(
        drop=100 * float(difference.mean()),
        std_error=100 * float(difference.std()) / math.sqrt(difference.size),
        lost=int((difference > 0).sum()),
        gained=int((difference < 0).sum()),
    )


def mean_std_error(scores: np.ndarray) -> float:
    """Standard error of the mean of per-sample scores, in points; the binomial one for scores of zeros and ones."""
    return 100 * float(scores.std()) / math.sqrt(scores.size)


@dataclass
class Comparison:
    """Agreement of two models, accumulated over batches.

    Attributes:
        samples: Samples seen.
        agreeing: Samples whose largest output has the same index; of a sample with several positions the share of them.
        not_finite: Values that are NaN or infinite in either model.
        max_error: Largest absolute difference.
    """

    samples: int = 0
    agreeing: float = 0.0
    not_finite: int = 0
    max_error: float = 0.0
    _squared_error: float = 0.0
    _sum: float = 0.0
    _squares: float = 0.0
    _values: int = 0

    def update(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Adds one batch of outputs, each [batch, classes, ...], as the default loss and metric take them."""
        if reference.shape != other.shape:
            raise ValueError(f"outputs of shape {reference.shape} and {other.shape} cannot be compared")
        reference, other = reference.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(reference) & np.isfinite(other)
        self.not_finite += int((~finite).sum())
        reference, other = np.where(finite, reference, 0.0), np.where(finite, other, 0.0)
        batch = reference.shape[0]
        largest = np.sign if reference.ndim == 1 else _class
        same = largest(reference) == largest(other)
        difference = np.abs(reference - other)
        self.samples += batch
        self.agreeing += float(same.reshape(batch, -1).mean(axis=1).sum())
        self.max_error = max(self.max_error, float(difference.max(initial=0.0)))
        self._squared_error += float((difference**2).sum())
        self._sum += float(reference.sum())
        self._squares += float((reference**2).sum())
        self._values += reference.size

    @property
    def agreement(self) -> float:
        """Share of samples on which both have the same largest output."""
        return self.agreeing / self.samples

    @property
    def std(self) -> float:
        """Standard deviation of the reference outputs."""
        mean = self._sum / self._values
        return math.sqrt(max(self._squares / self._values - mean**2, 0.0))

    @property
    def error(self) -> float:
        """Root mean square difference, relative to the standard deviation of the reference outputs."""
        rms = math.sqrt(self._squared_error / self._values)
        return rms / self.std if self.std > 0 else (0.0 if rms == 0 else math.inf)


def _class(values: np.ndarray) -> np.ndarray:
    return values.argmax(1)
