"""The report of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ..verdict import Verdict, quantity
from .report_frontier import Frontier, frontier_plot
from .report_plots import interval_plot, sensitivity_panel, share_bar, shared_axis, width_plot
from .report_scatter import Scatter, scatter_plot

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Stage:
    """The network at one stage of the run.

    Attributes:
        stage: Name, such as `healed`.
        test: The metric on the test set, as a share of one; None if it was not measured.
        params: Number of parameters.
        macs: Multiply-accumulates of one sample.
        bytes: Size of its file; None if it has none.
        latency: Median seconds by batch size.
    """

    stage: str
    test: float | None = None
    params: int | None = None
    macs: int | None = None
    bytes: int | None = None
    latency: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupRow:
    """One group of the plan.

    Attributes:
        name: Name of the group.
        total: Its width before.
        kept: Its width now.
        delta_loss: Predicted rise of the loss by what was removed; None if unknown.
        std_error: Its standard error.
        reason: Why this width, or why the group is frozen.
        frozen: No unit could be removed.
        scores: Score of every unit, in order; empty if there are none.
        score_errors: Standard error of every score.
        removed: Indices of the removed units.
    """

    name: str
    total: int
    kept: int
    delta_loss: float | None = None
    std_error: float | None = None
    reason: str = ""
    frozen: bool = False
    scores: Sequence[float] = ()
    score_errors: Sequence[float] = ()
    removed: Sequence[int] = ()

    @property
    def removed_flags(self) -> list[bool]:
        """For every unit, whether it was removed."""
        gone = set(self.removed)
        return [unit in gone for unit in range(self.total)]


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; numbers and text, no objects of other parts of secateur but the verdict.

    Attributes:
        title: Name of the run.
        command: What reproduces it.
        stages: The dense network first, the artifact last.
        groups: The plan, in the order of the network.
        verdict: What the gates said; None if the run stopped before them.
        metric: Name of the metric of the stages.
        score_unit: What unit scores are: `loss` (an estimated rise of the loss) or `score` (a rank only).
        verification: Scores against units that were really removed; None if the ranking was not verified.
        frontier: Plans around this one; None if they were not asked for.
        facts: What was measured on what: label and value, in the order in which they are shown.
        notes: What must not stay silent: refusals, fallbacks, skipped layers.
        files: sha256 and bytes of the artifact's files, by name.
    """

    title: str
    command: str
    stages: Sequence[Stage]
    groups: Sequence[GroupRow] = ()
    verdict: Verdict | None = None
    metric: str = "top1"
    score_unit: str = "loss"
    verification: Scatter | None = None
    frontier: Frontier | None = None
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def write_report(data: ReportData, path: str | Path) -> Path:
    """Writes the report as one self-contained HTML file.

    Args:
        data: What it shows.
        path: The file.

    Returns:
        The file.
    """
    path = Path(path)
    path.write_text(render_report(data), encoding="utf-8")
    return path


def render_report(data: ReportData) -> str:
    """The report as HTML text; a pure function."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(
        percent=percent, count=count, size=size, ms=ms, points=points, estimate=estimate, quantity=quantity
    )
    template = environment.from_string(Path(__file__).with_name(TEMPLATE).read_text(encoding="utf-8"))
    dense, compiled = data.stages[0], data.stages[-1]
    return template.render(
        data=data,
        dense=dense,
        compiled=compiled,
        headlines=_headlines(dense, compiled),
        batches=sorted({batch for stage in data.stages for batch in stage.latency}),
        gates=data.verdict.gates if data.verdict else (),
        latencies=_details(data, "latency", "batch"),
        kernels=_details(data, "kernels", "float_nodes"),
        latency_plot=_latency_plot(data),
        width_plot=width_plot([(g.name, g.total, g.kept, g.frozen) for g in data.groups]) if data.groups else "",
        panels=_panels(data.groups),
        scatter=scatter_plot(data.verification) if data.verification else "",
        frontier=frontier_plot(data.frontier) if data.frontier and data.frontier.points else "",
        share_bar=share_bar,
    )


@dataclass(frozen=True)
class Headline:
    """One figure at the top of the page: its name, what it is now, and what it was."""

    name: str
    value: str
    before: str


def _headlines(dense: Stage, compiled: Stage) -> list[Headline]:
    found = []
    if dense.test is not None and compiled.test is not None:
        change = f"{points(100 * (compiled.test - dense.test))} points from {percent(dense.test)}"
        found.append(Headline("accuracy", percent(compiled.test), change))
    for batch, seconds in sorted(compiled.latency.items()):
        if batch in dense.latency:
            ratio = dense.latency[batch] / seconds
            found.append(
                Headline(f"speed, batch {batch}", f"{ratio:.2f}×", f"{ms(seconds)}, was {ms(dense.latency[batch])}")
            )
    for name, before, after, show in (
        ("file", dense.bytes, compiled.bytes, size),
        ("MACs", dense.macs, compiled.macs, count),
        ("parameters", dense.params, compiled.params, count),
    ):
        if before and after is not None:
            found.append(Headline(name, f"{100 * after / before:.0f}%", f"{show(after)}, was {show(before)}"))
    return found


def _details(data: ReportData, gate: str, key: str) -> list[Mapping[str, Any]]:
    """Details of the results of a gate that measured something, told by a key that they then have."""
    return [result.details for result in (data.verdict.gate(gate) if data.verdict else ()) if key in result.details]


def _latency_plot(data: ReportData) -> Markup:
    """Ratios to the dense baseline; empty if there is none to compare with."""
    rows = [(f"batch {d['batch']}", d["ratio"], *d["ratio_interval"]) for d in _details(data, "latency", "ratio")]
    relative = [
        r.limit / 100 for r in (data.verdict.gate("latency") if data.verdict else ()) if r.limit and r.unit == "%"
    ]
    return interval_plot(rows, min(relative, default=None)) if rows else Markup()


def _panels(groups: Sequence[GroupRow]) -> list[tuple[GroupRow, Markup]]:
    scored = [group for group in groups if len(group.scores)]
    axis = shared_axis([group.scores for group in scored])
    return [
        (g, sensitivity_panel(g.name, g.scores, g.score_errors or [0.0] * g.total, g.removed_flags, axis))
        for g in scored
    ]


def percent(share: float | None) -> str:
    """A share of one as per cent, or a dash."""
    return "–" if share is None else f"{100 * share:.2f}%"


def count(number: float | None) -> str:
    """A count in three digits or so: 270.9 k, 40.6 M."""
    if number is None:
        return "–"
    for factor, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= factor:
            return f"{number / factor:.1f}{suffix}"
    return f"{number:g}"


def size(number: float | None) -> str:
    """Bytes as kB or MB (powers of ten)."""
    if number is None:
        return "–"
    return f"{number / 1e6:.2f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB" if number >= 1e3 else f"{number:g} B"


def ms(seconds: float | None) -> str:
    """Seconds as milliseconds, in three significant digits."""
    if seconds is None:
        return "–"
    value = 1e3 * seconds
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f} ms"


def points(value: float) -> str:
    """A signed difference in points, with a true minus sign."""
    text = f"{value:+.2f}"
    return "±0.00" if float(text) == 0 else text.replace("-", "−")


def estimate(value: float | None, error: float | None = None) -> str:
    """A value with its standard error, with as many digits as the error allows; a dash for None."""
    if value is None:
        return "–"
    largest = max(abs(value), error or 0.0)
    exponent = math.floor(math.log10(largest)) if largest > 0 else 0
    plain = -3 <= exponent <= 4
    scale = 1.0 if plain else 10.0**exponent
    digits = max(0, 2 - exponent) if plain else 2
    if error:
        digits = min(max(0, 1 - math.floor(math.log10(error / scale))), digits + 2)
    text = f"{value / scale:.{digits}f}".replace("-", "−")
    text += f" ± {error / scale:.{digits}f}" if error else ""
    if plain:
        return text
    power = str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"({text})·10{power}" if error else f"{text}·10{power}"
