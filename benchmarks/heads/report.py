"""The table of head pruning: mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def table(results: Sequence[dict[str, Any]], dense: float) -> list[str]:
    """Markdown: one row a ranking, a pair of columns (as cut, healed) for every share and kind.

    Args:
        results: `method`, `what`, `removed`, `seed`, `cut`, `healed` (accuracies, 0 to 1), `params` (share left).
        dense: Accuracy before anything is removed.
    """
    columns = sorted({(r["what"], r["removed"]) for r in results}, key=str)
    methods = list(dict.fromkeys(r["method"] for r in results))
    head = "| ranking |" + "".join(f" {what}, {removed:.0%}: as cut | healed |" for what, removed in columns)
    lines = [f"Dense: {dense:.2%} on the test set.", "", head, "|---|" + "---|---|" * len(columns)]
    for method in methods:
        cells = []
        for what, removed in columns:
            mine = [r for r in results if (r["method"], r["what"], r["removed"]) == (method, what, removed)]
            cells += [_cell([r["cut"] for r in mine]), _cell([r["healed"] for r in mine if r["healed"] is not None])]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{100 * statistics.mean(values):.2f}"
    return f"{mean} ± {100 * statistics.stdev(values):.2f} ({len(values)})" if len(values) > 1 else f"{mean} (1)"
