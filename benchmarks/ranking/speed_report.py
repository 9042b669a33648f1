"""The tables and the figure of rank_speed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from .speed import Point, Times


def probe_table(title: str, times: Times, memory: Mapping[str, float]) -> list[str]:
    """One line a contender: time, ratios to a gradient and to our FP32 probe, peak memory."""
    lines = [
        f"### A probe: {title}",
        "",
        "Medians [least, most]; ratios are medians over the rounds.",
        "",
        "| | seconds | gradients | time against hap (FP32) | peak memory, GiB | memory against hap (FP32) |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in times.items():
        gradients, ours = (_ratio(values, times.get(base, [])) for base in ("gradient", "hap (FP32)"))
        used, base = memory.get(name), memory.get("hap (FP32)")
        share = f"{used / base:.2f}" if used is not None and base else ""
        lines.append(f"| {name} | {_spread(values)} | {gradients} | {ours} | {_number(used)} | {share} |")
    return [*lines, ""]


def estimator_table(title: str, times: Times, refused: Mapping[str, str]) -> list[str]:
    """One line an estimator."""
    lines = [f"### Whole estimators: {title}, ten probes", "", "| method | seconds |", "|---|---|"]
    lines += [f"| {name} | {_spread(values)} |" for name, values in times.items()]
    return [*lines, *(f"| {name} | cannot: {why} |" for name, why in refused.items()), ""]


def growth_table(points: Sequence[Point]) -> list[str]:
    """Seconds by axis and method."""
    lines = ["### Growth of cost (ResNet-20)", ""]
    for axis in dict.fromkeys(point.axis for point in points):
        here = [point for point in points if point.axis == axis]
        values = sorted({point.value for point in here})
        lines += [f"| {axis} | {' | '.join(map(str, values))} |", "|---" * (len(values) + 1) + "|"]
        for method in dict.fromkeys(point.method for point in here):
            found = {point.value: f"{point.seconds:.2f}" for point in here if point.method == method}
            lines.append(f"| {method}, seconds | {' | '.join(found.get(value, '') for value in values)} |")
        lines.append("")
    return lines


def draw(points: Sequence[Point], path: Path) -> Path | None:
    """The figure, if matplotlib is there."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    axes = list(dict.fromkeys(point.axis for point in points))
    colours = {method: f"C{i}" for i, method in enumerate(dict.fromkeys(point.method for point in points))}
    figure, panels = pyplot.subplots(1, len(axes), figsize=(4 * len(axes), 3.2), squeeze=False)
    for axis, panel in zip(axes, panels[0], strict=True):
        values = sorted({point.value for point in points if point.axis == axis})
        for method, colour in colours.items():
            here = [point for point in points if point.axis == axis and point.method == method]
            if len(here) == 1:  # it does not depend on this
                panel.axhline(here[0].seconds, color=colour, linestyle="--", label=method)
            elif here:
                panel.plot([p.value for p in here], [p.seconds for p in here], color=colour, marker="o", label=method)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="processor seconds")
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        seconds = [tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if _inside(tick, panel.get_ylim())]
        panel.set_yticks(seconds, [str(tick) for tick in seconds])
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(path)
    return path


def _inside(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _ratio(values: Sequence[float], base: Sequence[float]) -> str:
    return f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.2f}" if base else ""


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
