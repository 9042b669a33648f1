"""The frontier of a plan in the report: predicted loss against one cost, as SVG text."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup, escape

from ..compress.planner.frontier import Frontier

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 600, 260, 62, 16, 12, 44


@dataclass(frozen=True)
class _Scale:
    """From a value to a pixel."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return [self.low + i / 4 * (self.high - self.low) for i in range(5)]


def cost_of(found: Frontier) -> str:
    """Name of the cost that is shown: the first that belongs to the budget that was varied."""
    names = list(found.points[0].costs)
    return next((name for name in names if name.startswith(found.varied)), names[0])


def frontier_plot(found: Frontier) -> Markup:
    """Points from the whole network (right) to the narrowest (left); each is the best plan for its cost.

    Args:
        found: A frontier with at least one point.
    """
    name = cost_of(found)
    costs = [point.costs[name] for point in found.points]
    losses = [point.delta_loss for point in found.points]
    x = _Scale(min(costs), max(costs), _LEFT, _WIDTH - _RIGHT)
    y = _Scale(0.0, max([*losses, 1e-30]), _HEIGHT - _BOTTOM, _TOP)
    bottom = _HEIGHT - _BOTTOM + 16
    grid = "".join(
        f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - _RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.2g}</text>'
        for tick in y.ticks
    ) + "".join(f'<text x="{x(tick):.1f}" y="{bottom}" text-anchor="middle">{tick:.0%}</text>' for tick in x.ticks)
    line = "L".join(f"{x(cost):.1f} {y(loss):.1f}" for cost, loss in zip(costs, losses, strict=True))
    dots = "".join(
        f"<g><title>{_title(point.costs, point.delta_loss)}</title>"
        f'<path class="kept" stroke-width="8" d="M{x(point.costs[name]):.1f} {y(point.delta_loss):.1f}h0"/></g>'
        for point in found.points
    )
    rise = "predicted rise of the loss" if found.unit == "loss" else "score of what is removed"
    label = f"{rise} against {name}"
    return Markup(
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f'<title>{escape(label)}</title>{grid}<path class="track" fill="none" d="M{line}"/>{dots}'
        f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">'
        f"{escape(name)}, share of the dense network</text></svg>"
    )


def _title(costs: dict[str, float], loss: float) -> str:
    return str(escape(", ".join([f"{loss:.3g}", *(f"{name} {100 * cost:.1f} %" for name, cost in costs.items())])))
