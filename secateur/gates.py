"""The limits that an artifact is held to, as data.

A gate that is null is not asked. A gate without a limit is measured and reported, and cannot fail. A limit that cannot
be judged (no test data, no dense baseline) fails: nothing passes because nobody looked.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from .compress.budget import EXAMPLES, UNITS, Amount, parse_amount
from .factory import DataSpec

MOST_THREADS = 1024
"""More than a runtime can use; far more crash it."""


def _is_duration(text: str) -> str:
    limit_of("latency", text)
    return text


def _is_size(text: str) -> str:
    limit_of("size", text)
    return text


def limit_of(kind: str, text: str) -> Amount:
    """Reads an upper limit as budgets are read.

    Args:
        kind: `latency` ("2ms", in seconds) or `size` ("400kB", in bytes); both may be a share ("60%").
        text: What was written.

    Raises:
        ValueError: There is no unit, an unknown one, or the number is not positive and finite.
    """
    return parse_amount(text, UNITS[kind], EXAMPLES[kind])


class Gate(BaseModel):
    """A gate: immutable, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AccuracyGate(Gate):
    """The metric of the artifact itself, on all test batches.

    Attributes:
        max_drop: Largest drop below the dense baseline, in points (hundredths of the metric).
        min: Smallest value, in per cent.
    """

    max_drop: float | None = Field(default=None, allow_inf_nan=False)
    min: float | None = Field(default=None, allow_inf_nan=False)


class ParityGate(Gate):
    """The artifact computes what the fake-quantised torch program computes.

    Attributes:
        min_agreement: Smallest share of samples whose largest output is the same.
        max_logit_error: Largest root mean square difference of the outputs, relative to their standard deviation.
            Integer kernels round ties in another way than simulated ones, which moves single codes.
        max_literal_error: The same, with the runtime executing the quantisation operators literally in float.
        samples: How many test samples are compared.
    """

    min_agreement: float | None = Field(default=0.99, ge=0.0, le=1.0)
    max_logit_error: float | None = Field(default=0.1, gt=0.0)
    max_literal_error: float | None = Field(default=0.05, gt=0.0)
    samples: int = Field(default=1000, ge=1)


class LatencyGate(Gate):
    """Latency, paired and interleaved with the dense baseline.

    Attributes:
        max: A share of the dense latency ("60%"), which must hold at every batch size, or a time ("2ms"), which must
            hold at the first. It is judged on the median; the confidence interval is reported beside it.
        batches: Batch sizes.
        threads: Threads of the runtime.
        seconds: Time spent measuring, for each batch size.
    """

    max: Annotated[str, AfterValidator(_is_duration)] | None = None
    batches: tuple[Annotated[int, Field(ge=1)], ...] = (1, 32)
    threads: int = Field(default=1, ge=1, le=MOST_THREADS)
    seconds: float = Field(default=5.0, gt=0.0)

    @field_validator("batches")
    @classmethod
    def _some_batch(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        if not batches or len(set(batches)) != len(batches):
            raise ValueError("give at least one batch size, each once")
        return batches

    @property
    def limit(self) -> Amount | None:
        """The limit, in seconds or as a share."""
        return None if self.max is None else limit_of("latency", self.max)


class SizeGate(Gate):
    """Size of the model file.

    Attributes:
        max: Bytes ("400kB"), or a share of the dense baseline ("40%").
    """

    max: Annotated[str, AfterValidator(_is_size)] | None = None

    @property
    def limit(self) -> Amount | None:
        """The limit, in bytes or as a share."""
        return None if self.max is None else limit_of("size", self.max)


class KernelGate(Gate):
    """What the runtime really executes in integers, read from its optimised graph.

    Attributes:
        min_integer_share: Smallest share of the convolutions.
    """

    min_integer_share: float | None = Field(default=1.0, ge=0.0, le=1.0)


class LegalityGate(Gate):
    """The files are those that the manifest names (sha256), and the model passes onnx's checker and shape inference."""


class Gates(Gate):
    """All gates of an artifact."""

    legality: LegalityGate | None = LegalityGate()
    accuracy: AccuracyGate | None = AccuracyGate()
    parity: ParityGate | None = ParityGate()
    latency: LatencyGate | None = LatencyGate()
    size: SizeGate | None = SizeGate()
    kernels: KernelGate | None = KernelGate()


class CheckFile(Gate):
    """What the gate suite reads: the gates, and where test data comes from.

    Attributes:
        gates: The gates.
        data: The data; only its `test` loader is read.
        metric: Name of a metric, or `package.module:function`.
    """

    gates: Gates = Gates()
    data: DataSpec | None = None
    metric: str = "top1"
