"""Verifies a ranking: removes units for real, one at a time, and compares the rise of the loss with the scores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...errors import UserError
from ...passes.mask import mask
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, LossFn
from ..heal.bn import reestimate_batch_norm
from .batches import Batch, batch_loss, read_batches
from .request import Progress
from .shards import gather, my_share
from .table import Sensitivity

LEAST = 5
"""With fewer units a rank correlation says nothing."""

RESAMPLES = 2000
_FORMAT = "secateur-verification/1"

BatchNorm = Literal["kept", "reestimated"]


@dataclass(frozen=True)
class Verification:
    """Scores of some units, and what their removal really does.

    Attributes:
        method: Name of the estimator.
        unit: What `predicted` is measured in: "loss" or "score".
        groups: Group of each unit, [units].
        units: Index of each unit in its group, [units].
        predicted: Its score, [units].
        std_error: Standard error of the score, [units].
        measured: Rise of the mean loss when this unit alone is removed, on the same samples as the ranking, [units].
        mean_loss: Loss with nothing removed.
        spearman: Rank correlation of `predicted` with `measured`; None where one of them is constant.
        interval: Its 95 % bootstrap interval over units; None like `spearman`.
        facts: What it was measured on: samples, batches, batch_norm, seed, seconds. JSON values.
    """

    method: str
    unit: str
    groups: Sequence[str]
    units: Sequence[int]
    predicted: Sequence[float]
    std_error: Sequence[float]
    measured: Sequence[float]
    mean_loss: float
    spearman: float | None
    interval: tuple[float, float] | None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Median of predicted over measured, of the units whose removal raises the loss; None if that means nothing."""
        pairs = zip(self.predicted, self.measured, strict=True)
        found = [predicted / measured for predicted, measured in pairs if measured > 0]
        return float(np.median(found)) if found and self.unit == "loss" else None

    def summary(self) -> dict[str, Any]:
        """The result in few JSON values."""
        found = {"units": len(self.units), "spearman": self.spearman, "interval": self.interval, "ratio": self.ratio}
        return {**found, **self.facts}

    def document(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**asdict(self), "ratio": self.ratio}

    def save(self, path: str | Path) -> None:
        """Writes a JSON file.

        Raises:
            UserError: It cannot be written.
        """
        try:
            Path(path).write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError("the verification cannot be written", where=str(path), why=str(error)) from None

    @staticmethod
    def load(path: str | Path) -> Verification:
        """Reads what `save` wrote.

        Raises:
            UserError: There is no such file, or it is something else.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.pop("format") != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            interval = found.pop("interval")
            return Verification(**found, interval=tuple(interval) if interval is not None else None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "this is not the verification of a ranking",
                where=str(path),
                why=str(error) or type(error).__name__,
                hint="write it again with rank --verify",
            ) from None


def verify_ranking(
    program: Program,
    table: Sensitivity,
    loader: Loader,
    loss: LossFn,
    *,
    units: int = 30,
    samples: int | None = None,
    batch_norm: BatchNorm = "kept",
    seed: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Removes units that are drawn at random, one at a time, and measures the true rise of the loss.

    A removed unit is masked at full size, which computes the same function as the smaller network. The loss is that of
    the samples that the ranking read, so that sampling does not part the two; what is left of the difference is the
    estimator's. Works under `torchrun`: each process removes its share of the units.

    Args:
        program: The program that was ranked; left as it was.
        table: What `rank` returned for it.
        loader: The loader of the ranking.
        loss: The loss of the ranking.
        units: How many units are drawn, over all groups alike; all of them if there are fewer.
        samples: How many samples are read; by itself as many as the ranking read, or 512 if it read none.
        batch_norm: "kept" leaves the statistics of the trained network, as estimators do; "reestimated" estimates them
            anew on the same samples for each removal, and for the whole network, as healing begins.
        seed: Of the draw.
        progress: Called as `progress(done, total)`.

    Raises:
        UserError: The table is of another program, there are too few units, or data or loss cannot be used.
    """
    started = time.perf_counter()
    if batch_norm not in ("kept", "reestimated"):
        raise UserError(
            f"batch_norm cannot be {batch_norm!r}", where="rank.verify_batch_norm", hint="it is kept or reestimated"
        )
    drawn = _draw(program, table, units, seed)
    samples = samples or int(str(table.facts.get("samples", 512)))
    device = next((p.device for p in program.graph_module.parameters()), torch.device("cpu"))
    batches = read_batches(loader, samples, program, device)
    evaluate = _evaluator(batches, loss, reestimate=batch_norm == "reestimated")
    dense = evaluate(program)
    losses = torch.zeros(len(drawn), dtype=torch.float64)
    mine = my_share(len(drawn))
    for done, place in enumerate(mine, start=1):
        name, unit = drawn[place]
        rest = np.delete(np.arange(len(table.groups[name].delta_loss)), unit)
        losses[place] = evaluate(mask(program, {name: rest.tolist()}))
        if progress:
            progress(done, len(mine))
    measured = gather(losses, device).numpy() - dense
    predicted = np.array([table.groups[name].delta_loss[unit] for name, unit in drawn])
    spearman, interval = rank_correlation(predicted, measured, seed)
    return Verification(
        method=table.method,
        unit=table.unit,
        groups=[name for name, _ in drawn],
        units=[unit for _, unit in drawn],
        predicted=predicted.tolist(),
        std_error=[float(table.groups[name].std_error[unit]) for name, unit in drawn],
        measured=measured.tolist(),
        mean_loss=dense,
        spearman=spearman,
        interval=interval,
        facts={
            "samples": sum(batch.size for batch in batches),
            "batches": len(batches),
            "batch_norm": batch_norm,
            "seed": seed,
            "seconds": round(time.perf_counter() - started, 3),
        },
    )


def rank_correlation(
    predicted: np.ndarray, measured: np.ndarray, seed: int = 0
) -> tuple[float | None, tuple[float, float] | None]:
    """Spearman's rank correlation and its 95 % interval, by the percentiles of a bootstrap over units.

    Args:
        predicted: [units].
        measured: [units].
        seed: Of the bootstrap.

    Returns:
        Correlation and interval, or None and None if one of the two is constant and so ranks nothing.
    """
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return None, None
    draws = np.random.default_rng(seed).integers(len(predicted), size=(RESAMPLES, len(predicted)))
    varied = (np.ptp(predicted[draws], 1) > 0) & (np.ptp(measured[draws], 1) > 0)
    low, high = np.quantile(_spearman(predicted[draws[varied]], measured[draws[varied]]), (0.025, 0.975))
    return float(_spearman(predicted[None], measured[None])[0]), (float(low), float(high))


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation of each row [rows, units] of one with that of the other; ties share their mean rank."""
    from scipy.stats import rankdata  # takes half a second to import, which every command would wait for

    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (rankdata(a, axis=1), rankdata(b, axis=1)))
    return (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))


def _draw(program: Program, table: Sensitivity, units: int, seed: int) -> list[tuple[str, int]]:
    """Group and index of the units to remove, in the order of the network."""
    widths = {group.name: group.width for group in program.groups if group.frozen is None}
    for name, scores in table.groups.items():
        if widths.get(name) != len(scores.delta_loss):
            raise UserError(
                "these sensitivities are of another program",
                where=name,
                why=f"{len(scores.delta_loss)} units have a score, the program has {widths.get(name, 'no such group')}",
                hint="rank this program first",
            )
    there = [(name, unit) for name, s in table.groups.items() if len(s.delta_loss) > 1 for unit in range(widths[name])]
    if isinstance(units, bool) or not isinstance(units, int) or units < LEAST:
        raise UserError(
            f"{units!r} units are too few to verify a ranking",
            where="rank.verify",
            why="a rank correlation over so few says nothing",
            hint=f"take at least {LEAST}; 30 give an interval of about ±0.3",
        )
    if len(there) < LEAST:
        raise UserError(
            "there is too little to verify",
            where="rank.verify",
            why=f"{len(there)} units can be removed by themselves; at least {LEAST} are needed",
            hint="secateur inspect says which groups are frozen, and why",
        )
    chosen = np.random.default_rng(seed).choice(len(there), min(units, len(there)), replace=False)
    return [there[place] for place in sorted(chosen)]


def _evaluator(batches: Sequence[Batch], loss: LossFn, *, reestimate: bool) -> Callable[[Program], float]:
    """What computes the mean loss of a program on the batches."""
    sizes = [batch.size for batch in batches]
    raw = [(dict(batch.kwargs) if batch.kwargs else batch.args, batch.target) for batch in batches]

    def evaluate(program: Program) -> float:
        if reestimate:
            program = reestimate_batch_norm(program, raw, samples=sum(sizes))
        with eval_mode(program.graph_module), torch.no_grad():
            found = [float(batch_loss(program, loss, batch)) for batch in batches]
        return float(np.average(found, weights=sizes))

    return evaluate
