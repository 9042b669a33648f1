"""The plots of the report, as SVG text: pure functions of numbers. Colours come from the page's style sheet."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

TOOLTIP_LIMIT = 256
"""Groups with more units have no tooltip for each one: thousands of elements make a page slow."""

_WIDTH, _HEIGHT = 300, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 6, 8, 24


@dataclass(frozen=True)
class LogAxis:
    """A vertical logarithmic axis that several panels share.

    Attributes:
        low: Exponent of ten at the bottom.
        high: Exponent of ten at the top.
        top: Pixel of the top.
        bottom: Pixel of the bottom.
    """

    low: int
    high: int
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM

    def y(self, value: float) -> float:
        """Pixel of a value; what is below the axis, zero and negative values lie on its bottom."""
        if not value > 10.0**self.low:
            return self.bottom
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.bottom - min(share, 1.0) * (self.bottom - self.top)

    @property
    def ticks(self) -> tuple[int, ...]:
        """Exponents that are labelled: at most five."""
        step = max(1, math.ceil((self.high - self.low) / 4))
        return tuple(range(self.low, self.high + 1, step))


def shared_axis(scores: Sequence[Sequence[float]]) -> LogAxis:
    """The axis on which the scores of all groups can be compared; at most six decades, the upper ones."""
    positive = [value for group in scores for value in group if value > 0 and math.isfinite(value)]
    if not positive:
        return LogAxis(-1, 0)
    high = math.ceil(math.log10(max(positive)) + 1e-9)
    low = max(math.floor(math.log10(min(positive))), high - 6)
    return LogAxis(min(low, high - 1), high)


def sensitivity_panel(
    name: str, delta_loss: Sequence[float], std_error: Sequence[float], removed: Sequence[bool], axis: LogAxis
) -> Markup:
    """The sorted scores of one group, with standard errors; removed units are crosses.

    Args:
        name: Name of the group.
        delta_loss: [width] estimated rise of the loss.
        std_error: [width] its standard error.
        removed: [width] whether the unit was removed.
        axis: Shared by all groups.
    """
    order = sorted(range(len(delta_loss)), key=lambda unit: (delta_loss[unit], unit))
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(order), 1)
    x = {unit: _LEFT + (place + 0.5) * step for place, unit in enumerate(order)}
    bars = "".join(_error_bar(x[u], delta_loss[u], std_error[u], axis) for u in order if std_error[u] > 0)
    radius = max(1.2, min(2.6, step / 2.6))
    kept = "".join(f"M{x[u]:.1f} {axis.y(delta_loss[u]):.1f}h0" for u in order if not removed[u])
    cut = "".join(_cross(x[u], axis.y(delta_loss[u]), radius) for u in order if removed[u])
    hits = ""
    if len(order) <= TOOLTIP_LIMIT:
        box = f'y="{axis.top}" width="{step:.2f}" height="{axis.bottom - axis.top}"'
        hits = "".join(
            f'<rect class="hit" x="{x[u] - step / 2:.1f}" {box}><title>unit {u}, '
            f"{'removed' if removed[u] else 'kept'}: {delta_loss[u]:.3g} ± {std_error[u]:.2g}</title></rect>"
            for u in order
        )
    label = f"{name}: {sum(removed)} of {len(order)} units removed"
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>{_log_grid(axis)}"
        f'<path class="errors" d="{bars}"/><path class="kept" stroke-width="{2 * radius:.1f}" d="{kept}"/>'
        f'<path class="removed" d="{cut}"/>{hits}'
        f'<text x="{_LEFT}" y="{_HEIGHT - 5}">least</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">most sensitive of {len(order)}</text></svg>'
    )


def width_plot(groups: Sequence[tuple[str, int, int, bool]]) -> Markup:
    """The width of every group before and after, in the order of the network.

    Args:
        groups: Name, total, kept, and whether the group is frozen.
    """
    width, height, left, top, bottom = 900, 220, 44, 12, 8
    highest = _nice_ceiling(max((total for _, total, _, _ in groups), default=1))
    span, step = height - top - bottom, (width - left) / max(len(groups), 1)
    bar = min(0.72 * step, 48.0)

    def y(value: float) -> float:
        return top + span * (1 - value / highest)

    grid = "".join(
        f'<path class="grid" d="M{left} {y(tick):.1f}H{width}"/>'
        f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in (0, highest / 4, highest / 2, 3 * highest / 4, highest)
    )
    bars = []
    for place, (name, total, kept, frozen) in enumerate(groups):
        x = left + (place + 0.5) * step - bar / 2
        label = f"{name}: {kept} of {total}" + (", frozen" if frozen else "")
        bars.append(
            f"<g><title>{escape(label)}</title>"
            f'<rect class="total" x="{x:.1f}" y="{y(total):.1f}" width="{bar:.1f}" height="{y(0) - y(total):.1f}"/>'
            f'<rect class="{"frozen" if frozen else "kept-bar"}" x="{x:.1f}" y="{y(kept):.1f}" width="{bar:.1f}" '
            f'height="{y(0) - y(kept):.1f}"/></g>'
        )
    return Markup(
        f'<svg class="plot" viewBox="0 0 {width} {height}" role="img" aria-label="units of each group, kept and total">'
        f"{grid}{''.join(bars)}</svg>"
    )


def share_bar(share: float, label: str) -> Markup:
    """A small bar for a table cell, filled to `share` (0 to 1)."""
    filled = 100 * min(max(share, 0.0), 1.0)
    return Markup(
        f'<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{escape(label)}">'
        f'<title>{escape(label)}</title><rect class="total" width="100" height="8"/>'
        f'<rect class="kept-bar" width="{filled:.1f}" height="8"/></svg>'
    )


def interval_plot(rows: Sequence[tuple[str, float, float, float]], limit: float | None = None) -> Markup:
    """Ratios with their confidence intervals on one line each; 1 is the dense baseline.

    Args:
        rows: Label, ratio, lower and upper bound.
        limit: A largest ratio allowed, drawn as a line.
    """
    width, left, right, line = 600, 92, 64, 30
    height = line * len(rows) + 24
    largest = max([1.0, limit or 0.0, *(high for _, _, _, high in rows)]) * 1.04

    def x(value: float) -> float:
        return left + (width - left - right) * value / largest

    axis = "".join(
        f'<path class="grid" d="M{x(tick):.1f} 4V{height - 20}"/>'
        f'<text x="{x(tick):.1f}" y="{height - 6}" text-anchor="middle">{tick:.0%}</text>'
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    body = []
    for place, (label, ratio, low, high) in enumerate(rows):
        y = 4 + line * (place + 0.5)
        body.append(
            f"<g><title>{escape(label)}: {ratio:.1%} of dense, interval {low:.1%} to {high:.1%}</title>"
            f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>'
            f'<path class="track" d="M{x(0):.1f} {y}H{x(ratio):.1f}"/>'
            f'<path class="interval" d="M{x(low):.1f} {y}H{x(high):.1f}'
            f'M{x(low):.1f} {y - 4}v8M{x(high):.1f} {y - 4}v8"/>'
            f'<path class="kept" stroke-width="7" d="M{x(ratio):.1f} {y}h0"/>'
            f'<text class="strong" x="{x(high) + 9:.1f}" y="{y + 4}">{1 / ratio:.2f}×</text></g>'
        )
    bound = ""
    if limit is not None:
        bound = f'<path class="limit" d="M{x(limit):.1f} 4V{height - 20}"><title>limit {limit:.0%}</title></path>'
    return Markup(
        f'<svg class="plot ratios" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="latency as a share of the dense baseline">'
        f"{axis}{''.join(body)}{bound}</svg>"
    )


def _error_bar(x: float, value: float, error: float, axis: LogAxis) -> str:
    top, bottom = axis.y(value + error), axis.y(value - error)
    return f"M{x:.1f} {top:.1f}V{bottom:.1f}" if bottom - top > 0.3 else ""


def _cross(x: float, y: float, radius: float) -> str:
    size = 2 * radius
    return f"M{x - radius:.1f} {y - radius:.1f}l{size:.1f} {size:.1f}m0 {-size:.1f}l{-size:.1f} {size:.1f}"


def _log_grid(axis: LogAxis) -> str:
    lines = []
    for exponent in axis.ticks:
        y = axis.y(10.0**exponent)
        label = f'10<tspan dy="-4" font-size="8">{exponent}</tspan>'
        if exponent == axis.low:
            label = f"≤ {label}"
        lines.append(
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        )
    return "".join(lines)


def _nice_ceiling(value: int) -> int:
    """The smallest of 4, 6, 8, 12, 16, 24, … that is at least `value`: its quarters are easy to read."""
    return next(number for power in itertools.count() for number in (4 * 2**power, 6 * 2**power) if number >= value)
