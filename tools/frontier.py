"""The Pareto frontier of a plan, as a table."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

POINTS = 11
"""Budgets that `plan --frontier` tries."""


def show_frontier(console: Console, path: Path) -> None:
    """Prints the frontier that a plan step wrote, if it wrote one."""
    if not path.is_file():
        return
    from ..compress.planner.frontier import Frontier

    found = Frontier.load(path)
    rise = "rise of the loss" if found.unit == "loss" else "score of what is removed"
    title = f"predicted {rise} against {found.varied}; costs are shares of the dense FP32 network"
    names = list(dict.fromkeys(name for point in found.points for name in point.costs))
    table = Table(rise, *names, "groups cut", title=title, title_justify="left")
    for column in table.columns:
        column.justify = "right"
    for point in found.points:
        costs = (f"{100 * point.costs[name]:.1f}%" for name in names)
        table.add_row(f"{point.delta_loss:.3g}", *costs, str(len(point.widths)))
    console.print(table)
    if not all(point.optimal for point in found.points):
        console.print("not every point is proven optimal: searches ran into plan.search_seconds")
