"""Prints a difference: what it is between, and a table for each part that differs."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..compress.plan import GroupPlan
from ..verdict import GateResult, quantity
from .diff import Difference
from .diff_plan import PlanDifference
from .diff_results import ResultDifference
from .diff_values import ABSENT, Change, Line, Quantity
from .report import estimate, ms, points

_NONE = "–"


def show_difference(console: Console, found: Difference) -> None:
    """Prints both sides, the notes, the parts that differ as tables, and the names of those that do not."""
    for name, side in (("A", found.a), ("B", found.b)):
        console.print(f"{name}: {side.path}, {side.state}", markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    equal = []
    for name, rows in (
        ("recipe", found.recipe),
        ("environment", found.environment),
        ("captured network", found.captured),
    ):
        if rows:
            console.print(_changes(name, rows))
        elif rows is not None:
            equal.append(name)
    if found.plan is not None and not found.plan.same:
        _show_plan(console, found.plan, recipes=found.recipe is not None)
    elif found.plan is not None:
        equal.append("plan")
    if found.results is not None and not found.results.same:
        _show_results(console, found.results)
    elif found.results is not None:
        equal.append("results")
    if found.same:
        console.print(f"nothing differs: {', '.join(equal)}", markup=False)
    elif equal:
        console.print(f"the same in both: {', '.join(equal)}", markup=False)


def _changes(title: str, rows: tuple[Change, ...]) -> Table:
    table = Table("key", "A", "B", title=title, title_justify="left")
    for row in rows:
        table.add_row(escape(row.key), _value(row.a), _value(row.b))
    return table


def _show_plan(console: Console, found: PlanDifference, *, recipes: bool) -> None:
    if found.settings and not recipes:  # else the recipe has said it
        console.print(_changes("plan: what it was made for", found.settings))
    console.print(_lines("plan: totals", found.totals))
    if found.groups:
        table = Table("group", "A keeps", "B keeps", "both keep", "delta loss A", "delta loss B", title_justify="left")
        table.title = f"plan: {len(found.groups)} of {found.group_count} groups differ"
        for column in table.columns[3:]:
            column.justify = "right"
        for group in found.groups:
            shared = _NONE if group.kept_in_both is None else str(group.kept_in_both)
            if group.implanted_in_both is not None and any(s and s.implanted for s in (group.a, group.b)):
                shared += f", {group.implanted_in_both} as implants"
            losses = [_NONE if side is None else f"{side.delta_loss:.3g}" for side in (group.a, group.b)]
            table.add_row(escape(group.name), _kept(group.a), _kept(group.b), shared, *losses)
        console.print(table)
    for block in found.blocks:
        which, other = ("A", "B") if block.a else ("B", "A")
        console.print(f"block {block.key} is dropped in {which}, kept in {other}", markup=False)


def _show_results(console: Console, found: ResultDifference) -> None:
    if any(line.differs for line in found.lines):
        console.print(_lines("results", found.lines))
    if found.gates:
        table = Table("gate", "A", "B", title="gates that differ", title_justify="left")
        for gate in found.gates:
            table.add_row(escape(gate.name), _gate(gate.a), _gate(gate.b))
        console.print(table)
    for name, verdict in zip("AB", found.verdicts if any(found.verdicts) else (), strict=False):
        told = "the gates have not run"
        if verdict is not None:
            counts = ", ".join(f"{count} {state}" for state, count in verdict["states"].items())
            broken = f"; broken: {'; '.join(verdict['failed'])}" if verdict["failed"] else ""
            told = f"{verdict['heading']} ({counts}{broken})"
        console.print(f"gates of {name}: {told}", markup=False, soft_wrap=True)


def _lines(title: str, lines: tuple[Line, ...]) -> Table:
    table = Table("", "A", "B", "B against A", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines:
        table.add_row(escape(line.name), _quantity(line, line.a), _quantity(line, line.b), _step(line))
    return table


def _quantity(line: Line, found: Quantity | None) -> str:
    if found is None:
        return _NONE
    if line.unit == "count":
        return f"{found.value:,.0f}" + (f" ({100 * found.share:.1f}%)" if found.share is not None else "")
    if line.unit == "bytes":
        return f"{found.value:,.0f} bytes"
    if line.unit == "seconds":
        return ms(found.value)
    if line.unit == "score":
        return estimate(found.value, found.std_error)
    text = f"{100 * found.value:.2f}%"
    if found.std_error is not None:
        text += f" ± {100 * found.std_error:.2f}"
    if found.interval is not None:
        text += f" ({100 * found.interval[0]:.2f} to {100 * found.interval[1]:.2f})"
    return text


def _step(line: Line) -> str:
    """What changed from A to B; nothing if nothing did."""
    if line.a is None or line.b is None or not line.differs:
        return ""
    before, after = line.a.value, line.b.value
    if line.unit == "share":
        return f"{points(100 * (after - before))} points" + (", intervals overlap" if line.unclear else "")
    if line.unit == "score":
        return ("+" if after > before else "") + estimate(after - before)
    return f"{100 * (after / before - 1):+.1f}%".replace("-", "−") if before else ""


def _kept(line: GroupPlan | None) -> str:
    if line is None:
        return "no such group"
    text = f"{len(line.kept)}/{line.width}"
    if line.implant is not None and line.implanted:
        rank = f", rank {line.implant.rank}" if line.implant.rank is not None else ""
        text += f", {len(line.implanted)} of them implants ({line.implant.form}{rank})"
    return text


def _gate(gate: GateResult | None) -> str:
    if gate is None:
        return _NONE
    limit = f"{'≥' if gate.at_least else '≤'} {quantity(gate.limit, gate.unit)}" if gate.limit is not None else ""
    state = "[bold red]FAILED[/]" if gate.state == "failed" else gate.state
    return " ".join(part for part in (escape(quantity(gate.measured, gate.unit)), limit, state) if part)


def _value(value: Any) -> str:
    if value is ABSENT:
        return _NONE
    return escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
