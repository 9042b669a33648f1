"""Tables of accuracy, ours beside the published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .measure import means

PUBLISHED = {
    "MP": {0.5: 88.44, 0.6: 85.24, 0.7: 78.79, 0.8: 54.01, 0.9: 11.79},
    "WF": {0.5: 90.23, 0.6: 87.96, 0.7: 81.05, 0.8: 62.63, 0.9: 11.49},
    "CBS": {0.5: 90.58, 0.6: 88.88, 0.7: 81.84, 0.8: 51.28, 0.9: 13.68},
    "CHITA": {0.5: 90.60, 0.6: 89.22, 0.7: 84.12, 0.8: 57.90, 0.9: 15.60},
    "CHITA++": {0.5: 91.04, 0.6: 90.78, 0.7: 90.38, 0.8: 88.72, 0.9: 79.32},
}
"""Benbaki et al. 2023, table 1 (ResNet-20, CIFAR-10, dense 91.36, mean of 5 runs); MP, WF and CBS there are those of Yu
et al. 2022, of another checkpoint and with other layers pruned."""


def accuracy_table(records: Sequence[Mapping[str, Any]], key: str, title: str) -> list[str]:
    """Markdown: a row a contender, a column a sparsity.

    Args:
        records: What was measured.
        key: `kept` or `reestimated`.
        title: Above the table.
    """
    found = {(label, sparsity): (mean, spread, count) for label, sparsity, mean, spread, count in means(records, key)}
    sparsities = sorted({sparsity for _, sparsity in found})
    labels = list(dict.fromkeys(label for label, _ in found))
    lines = [title, "", *_head("", sparsities)]
    for label in labels:
        cells = [_cell(*found[label, s]) if (label, s) in found else "" for s in sparsities]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if key == "kept":
        for label, row in PUBLISHED.items():
            cells = [f"{row[s]:.2f}" if s in row else "" for s in sparsities]
            lines.append(f"| *{label}, published* | {' | '.join(f'*{c}*' if c else '' for c in cells)} |")
    return [*lines, ""]


def seconds_table(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown: processor seconds of every contender."""
    rows = [(label, s, mean) for label, s, mean, _, _ in means(records, "cpu_seconds")]
    sparsities = sorted({s for _, s, _ in rows})
    lines = ["Processor seconds (contenders of one stage share their gradients, which are not in these).", ""]
    lines += _head("", sparsities)
    for label in dict.fromkeys(label for label, _, _ in rows):
        cells = {s: f"{mean:.1f}" for name, s, mean in rows if name == label}
        lines.append(f"| {label} | {' | '.join(cells.get(s, '') for s in sparsities)} |")
    return [*lines, ""]


def _head(first: str, columns: Iterable[float]) -> list[str]:
    names = [f"{column:.0%}" for column in columns]
    return [f"| {first} | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]


def _cell(mean: float, spread: float, count: int) -> str:
    return f"{mean:.2f}" if count < 2 else f"{mean:.2f} ± {spread:.2f}"
