"""The tables of pruning.py, as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from .cut import RESOURCES, Cut
from .healed import Healed

WHAT = (
    "Top-1 on the test images in per cent: as cut → after batch norm was re-estimated; medians over the seeds of the "
    "ranking, [least, most] where there are several. In brackets what is left of the other resource."
)


def tables(cuts: Sequence[Cut], healed: Sequence[Healed], dense: float) -> list[str]:
    """One table of cuts a resource, and one of trained networks."""
    lines = []
    for resource, word in RESOURCES.items():
        here = [cut for cut in cuts if cut.resource == resource]
        images = " or ".join(f"{n:,}" for n in sorted({cut.samples for cut in here}))
        lines += [f"Budgets on {word}, {images} test images, dense {dense:.2%}. {WHAT}", ""]
        lines += _table([(c.label, c.removed, c) for c in here], word, _cut_cell)
    for epochs in sorted({h.epochs for h in healed}):
        how = (
            f"After {epochs:g} epochs of the same training (one seed, one run a cell)"
            if epochs
            else "Refitted in closed form"
        )
        lines += [f"{how}: batch norm re-estimated alone → healed, all test images.", ""]
        for resource, word in RESOURCES.items():
            here = [h for h in healed if h.resource == resource and h.epochs == epochs]
            if here:
                lines += _table([(h.label, h.removed, h) for h in here], word, _healed_cell)
    return lines


def _table(entries: list[tuple[str, float, Any]], word: str, cell: Callable[[list[Any]], str]) -> list[str]:
    removals = sorted({removed for _, removed, _ in entries})
    lines = [
        "| ranking | " + " | ".join(f"{removed:.0%} of {word} removed" for removed in removals) + " |",
        "|---" * (len(removals) + 1) + "|",
    ]
    for label in dict.fromkeys(label for label, _, _ in entries):
        cells = [cell([e for name, r, e in entries if name == label and r == removed]) for removed in removals]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return [*lines, ""]


def _cut_cell(cuts: Sequence[Cut]) -> str:
    done = [cut for cut in cuts if cut.fresh is not None]
    if not done:
        return "out of reach" if cuts else ""
    fresh = [100 * (cut.fresh or 0.0) for cut in done]
    spread = f" [{min(fresh):.2f}, {max(fresh):.2f}]" if len(fresh) > 1 else ""
    other = statistics.median(100 * ((cut.params if cut.resource == "macs" else cut.macs) or 0.0) for cut in done)
    raw = statistics.median(100 * (cut.raw or 0.0) for cut in done)
    return f"{raw:.2f} → {statistics.median(fresh):.2f}{spread} ({other:.0f} %)"


def _healed_cell(cells: Sequence[Healed]) -> str:
    done = [cell for cell in cells if cell.end is not None]
    if not done:
        return "out of reach" if cells else ""
    return f"{100 * (done[0].start or 0.0):.2f} → {100 * (done[0].end or 0.0):.2f}"
