"""Tables of accuracy, ours beside the published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .measure import means

PUBLISHED = {
    "resnet20": {
        "MP": {0.5: 88.44, 0.6: 85.24, 0.7: 78.79, 0.8: 54.01, 0.9: 11.79},
        "WF": {0.5: 90.23, 0.6: 87.96, 0.7: 81.05, 0.8: 62.63, 0.9: 11.49},
        "CBS": {0.5: 90.58, 0.6: 88.88, 0.7: 81.84, 0.8: 51.28, 0.9: 13.68},
        "CHITA": {0.5: 90.60, 0.6: 89.22, 0.7: 84.12, 0.8: 57.90, 0.9: 15.60},
        "CHITA++": {0.5: 91.04, 0.6: 90.78, 0.7: 90.38, 0.8: 88.72, 0.9: 79.32},
    },
    "mlpnet": {
        "MP": {0.5: 93.93, 0.6: 93.78, 0.7: 93.62, 0.8: 92.89, 0.9: 90.30, 0.95: 83.64, 0.98: 32.25},
        "WF": {0.5: 94.02, 0.6: 93.82, 0.7: 93.77, 0.8: 93.57, 0.9: 91.69, 0.95: 85.54, 0.98: 38.26},
        "CBS": {0.5: 93.96, 0.6: 93.96, 0.7: 93.98, 0.8: 93.90, 0.9: 93.14, 0.95: 88.92, 0.98: 55.45},
        "CHITA": {0.5: 93.97, 0.6: 93.94, 0.7: 93.80, 0.8: 93.59, 0.9: 92.46, 0.95: 88.09, 0.98: 46.25},
        "CHITA++": {0.5: 95.97, 0.6: 95.93, 0.7: 95.89, 0.8: 95.80, 0.9: 95.55, 0.95: 94.70, 0.98: 90.73},
    },
}
"""Benbaki et al. 2023, table 1, by network (dense 91.36 and 93.97, mean of 5 runs); MP, WF and CBS there are those of
Yu et al. 2022, for ResNet-20 of another checkpoint and with other layers pruned."""


def accuracy_table(records: Sequence[Mapping[str, Any]], key: str, title: str, network: str = "resnet20") -> list[str]:
    """Markdown: a row a contender, a column a sparsity.

    Args:
        records: What was measured.
        key: `kept` or `reestimated`.
        title: Above the table.
        network: A key of `PUBLISHED`.
    """
    found = {(label, sparsity): (mean, spread, count) for label, sparsity, mean, spread, count in means(records, key)}
    if not found:
        return []
    sparsities = sorted({sparsity for _, sparsity in found})
    labels = list(dict.fromkeys(label for label, _ in found))
    lines = [title, "", *_head("", sparsities)]
    for label in labels:
        cells = [_cell(*found[label, s]) if (label, s) in found else "" for s in sparsities]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    if key == "kept":
        for label, row in PUBLISHED.get(network, {}).items():
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
