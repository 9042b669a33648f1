"""The scatter plot of a verified ranking, as SVG text: scores against what the removal of each unit really does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from .report_plots import LogAxis, shared_axis

_SIZE, _LEFT, _RIGHT, _TOP, _BOTTOM = 440, 62, 12, 10, 44


@dataclass(frozen=True)
class Scatter:
    """What the plot shows.

    Attributes:
        labels: Name of each unit, [units].
        predicted: Its score, [units].
        std_error: Standard error of the score, [units].
        measured: Rise of the loss when it alone was removed, [units].
        unit: "loss" if scores are rises of the loss too, so that they can be compared one to one, or "score".
        text: What it came to, in sentences.
    """

    labels: Sequence[str]
    predicted: Sequence[float]
    std_error: Sequence[float]
    measured: Sequence[float]
    unit: str
    text: Sequence[str]


def scatter_plot(data: Scatter) -> Markup:
    """Both axes are logarithmic; what is zero, negative or below an axis lies on it. Losses share one scale."""
    if data.unit == "loss":
        across = up = shared_axis([data.predicted, data.measured])
    else:
        across, up = shared_axis([data.predicted]), shared_axis([data.measured])
    across = LogAxis(across.low, across.high, top=_SIZE - _RIGHT, bottom=_LEFT)
    up = LogAxis(up.low, up.high, top=_TOP, bottom=_SIZE - _BOTTOM)
    points = zip(data.labels, data.predicted, data.std_error, data.measured, strict=True)
    dots, bars, hits = [], [], []
    for label, predicted, error, measured in points:
        x, y = across.y(predicted), up.y(measured)
        dots.append(f"M{x:.1f} {y:.1f}h0")
        if error > 0:
            bars.append(f"M{across.y(predicted - error):.1f} {y:.1f}H{across.y(predicted + error):.1f}")
        hits.append(
            f'<circle class="hit" cx="{x:.1f}" cy="{y:.1f}" r="7"><title>{escape(label)}: predicted {predicted:.3g} '
            f"± {error:.2g}, measured {measured:.3g}</title></circle>"
        )
    diagonal = ""
    if data.unit == "loss":
        diagonal = f'<path class="limit" d="M{across.bottom} {up.bottom}L{across.top} {up.top}"/>'
    label = f"predicted against measured rise of the loss, {len(data.labels)} units"
    heading = "predicted rise of the loss" if data.unit == "loss" else "score"
    middle = (_TOP + _SIZE - _BOTTOM) / 2
    return Markup(
        f'<svg class="plot scatter" viewBox="0 0 {_SIZE} {_SIZE}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{_grid(across, up)}{diagonal}"
        f'<path class="errors" d="{"".join(bars)}"/><path class="kept" stroke-width="6" d="{"".join(dots)}"/>'
        f'{"".join(hits)}<text x="{_SIZE - _RIGHT}" y="{_SIZE - 6}" text-anchor="end">{heading}</text>'
        f'<text transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">'
        f"measured rise of the loss</text></svg>"
    )


def _grid(across: LogAxis, up: LogAxis) -> str:
    lines = []
    for exponent in across.ticks:
        x = across.y(10.0**exponent)
        lines.append(f'<path class="grid" d="M{x:.1f} {up.top}V{up.bottom}"/>')
        lines.append(f'<text x="{x:.1f}" y="{up.bottom + 16}" text-anchor="middle">{_power(exponent, across)}</text>')
    for exponent in up.ticks:
        y = up.y(10.0**exponent)
        lines.append(f'<path class="grid" d="M{across.bottom} {y:.1f}H{across.top}"/>')
        lines.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_power(exponent, up)}</text>')
    return "".join(lines)


def _power(exponent: int, axis: LogAxis) -> str:
    text = f'10<tspan dy="-4" font-size="8">{exponent}</tspan>'
    return f"≤ {text}" if exponent == axis.low else text
