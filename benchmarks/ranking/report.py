"""The tables of rank_quality, as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .agreement import agreement, ceiling
from .cases import Ranking
from .cut import STREAMS, Cut
from .truth import Truth

SHARES = (0.3, 0.5)
"""Parts of the units that a ranking should find."""


def agreement_table(truth: Truth, about: Mapping[str, Any], rankings: Iterable[Ranking]) -> list[str]:
    """Agreement of every ranking with the truth."""
    measured = int(truth.complete.sum())
    lines = [
        f"True rise of the loss of {measured} of {len(truth.complete)} units, on {about['samples'] // 2} augmented "
        f"training images and {about['samples'] // 2} test images (the mean over both). 'BN' is after batch norm was "
        "re-estimated on those training images, 'raw' without. Ranks: Spearman; a perfect estimator would reach "
        f"{ceiling(truth, 're-estimated', 'all'):.3f} (BN) and {ceiling(truth, 'kept', 'all'):.3f} (raw), given the "
        "noise of these samples; a correlation divided by that is what one would be without the noise. Medians over "
        "the seeds, [least, most] where there are several.",
        "",
        "| ranking | seconds | BN, all units | BN, inside groups | least 30 % found | least 50 % found "
        "| raw, all units | raw, inside groups | BN, test images only |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for label, members in _by_label(rankings).items():
        rows = []
        for ranking in members:
            scores = ranking.vector(truth)
            fresh, raw, test = (
                agreement(scores, truth.rise(*which), truth.widths, SHARES)
                for which in (("re-estimated",), ("kept",), ("re-estimated", "test"))
            )
            rows.append((fresh.overall, fresh.within, *fresh.found, raw.overall, raw.within, test.overall))
        cells = [_spread(column) for column in zip(*rows, strict=True)]
        seconds = statistics.median(ranking.seconds for ranking in members)
        lines.append(f"| {label} | {'' if seconds != seconds else f'{seconds:.1f}'} | {' | '.join(cells)} |")
    return lines


def cut_tables(cuts: Sequence[Cut], dense: float) -> list[str]:
    """Accuracy after the cut, one table for kept streams and one for free ones."""
    lines = []
    for streams in STREAMS:
        here = [cut for cut in cuts if cut.streams == streams and cut.resource == "macs"]
        if not here:
            continue
        removals = sorted({cut.removed for cut in here})
        images = sorted({cut.samples for cut in here})
        lines += [
            "",
            f"Residual streams {streams}; {' or '.join(map(str, images))} test images, dense {100 * dense:.2f} %. "
            "Top-1 in per cent, as cut → after batch norm was re-estimated (parameters left); medians over the seeds, "
            "[least, most] after batch norm where there are several.",
            "",
            "| ranking | " + " | ".join(f"{removal:.0%} of MACs removed" for removal in removals) + " |",
            "|---" * (len(removals) + 1) + "|",
        ]
        for label, members in _by_label(here).items():
            cells = [_cut_cell([cut for cut in members if cut.removed == removal]) for removal in removals]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _cut_cell(cuts: Sequence[Cut]) -> str:
    done = [cut for cut in cuts if cut.raw is not None and cut.fresh is not None and cut.params is not None]
    if not done:
        return "out of reach" if cuts else ""
    raw = statistics.median(100 * (cut.raw or 0.0) for cut in done)
    params = statistics.median(100 * (cut.params or 0.0) for cut in done)
    fresh = _spread([100 * (cut.fresh or 0.0) for cut in done], 2)
    return f"{raw:.2f} → {fresh} ({params:.0f} %)"


def _spread(values: Sequence[float], digits: int = 3) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def _by_label(items: Iterable[Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return groups
