"""What a ranking came to: scores by group, and how they compare with units that were really removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..compress.sensitivity.table import Scores, Sensitivity
from ..compress.sensitivity.verify import Verification
from ..steps import TABLE, VERIFICATION

SIGNIFICANT = 2.0
"""A score is told from zero if it is at least so many standard errors away from it."""

_COLUMNS = ("group", "width", "median", "min", "max", "unclear", "negative")


def load_ranking(folder: Path) -> tuple[Sensitivity, Verification | None]:
    """The table in the folder of a finished ranking, and its verification if it was verified."""
    path = folder / VERIFICATION
    return Sensitivity.load(folder / TABLE), Verification.load(path) if path.is_file() else None


def describe_ranking(table: Sensitivity, verification: Verification | None) -> dict[str, Any]:
    """A ranking as plain data.

    Of each group: width, median, min and max of the scores; `unclear`, the share of units whose score is less than two
    standard errors from zero (None if the method is exact, so that there is no standard error); `negative`, the share
    of scores below zero.
    """
    return {
        "method": table.method,
        "unit": table.unit,
        "facts": dict(table.facts),
        "groups": [{"name": name, **_spread(scores)} for name, scores in table.groups.items()],
        "verification": verification.document() if verification else None,
    }


def show_ranking(console: Console, found: dict[str, Any]) -> None:
    """Prints what `describe_ranking` found."""
    facts = found["facts"]
    about = [f"{facts[key]} {key}" for key in ("samples", "probes") if key in facts]
    about += [f"{facts['seconds']:.3g} s"] if "seconds" in facts else []
    meaning = "rise of the loss if a unit is removed" if found["unit"] == "loss" else "a score that only ranks"
    table = Table(*_COLUMNS, title=f"{found['method']}: {', '.join([meaning, *about])}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for group in found["groups"]:
        numbers = (f"{group[key]:.3g}" for key in ("median", "min", "max"))
        shares = (_share(group[key]) for key in ("unclear", "negative"))
        table.add_row(group["name"], str(group["width"]), *numbers, *shares)
    console.print(table)
    if any(group["unclear"] for group in found["groups"]):
        more = "more probes or samples" if "probes" in facts else "more samples"
        console.print(f"unclear: less than {SIGNIFICANT:g} standard errors from zero; {more} tell them apart")
    if found["verification"]:
        _show_verification(console, found["verification"])


def verdict_on(found: dict[str, Any]) -> Iterator[str]:
    """Sentences on a verification, as plain data: the correlation, and what was measured how."""
    norm = "estimated anew each time" if found["facts"]["batch_norm"] == "reestimated" else "as trained"
    if found["spearman"] is None:
        yield "no rank correlation: all predictions, or all rises, are equal"
    else:
        low, high = found["interval"]
        yield f"Spearman {found['spearman']:.2f} (95 % interval {low:.2f} to {high:.2f}, {len(found['units'])} units)"
    if found["ratio"] is not None:
        yield f"predicted / measured: {found['ratio']:.2g} (median where the loss rose)"
    fell = sum(measured < 0 for measured in found["measured"])
    if fell:
        yield f"the loss fell without {fell} of the {len(found['units'])} units"
    yield f"loss {found['mean_loss']:.4g} on {found['facts']['samples']} samples; batch-norm statistics {norm}"


def _show_verification(console: Console, found: dict[str, Any]) -> None:
    exact = not any(found["std_error"])
    heading = "predicted" if found["unit"] == "loss" else "score"
    columns = ("group", "unit", heading, *(() if exact else ("± s.e.",)), "measured", "rank", "true rank")
    table = Table(*columns, title="units removed for real, least important first", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    predicted, measured = _places(found["predicted"]), _places(found["measured"])
    for place in np.argsort(found["measured"], kind="stable"):
        error = () if exact else (f"{found['std_error'][place]:.2g}",)
        cells = (f"{found['predicted'][place]:.3g}", *error, f"{found['measured'][place]:.3g}")
        ranks = (str(predicted[place]), str(measured[place]))
        table.add_row(found["groups"][place], str(found["units"][place]), *cells, *ranks)
    console.print(table)
    for sentence in verdict_on(found):
        console.print(sentence, markup=False)


def _spread(scores: Scores) -> dict[str, Any]:
    values, errors = scores.delta_loss, scores.std_error
    return {
        "width": len(values),
        "median": float(np.median(values)),
        "min": float(values.min()),
        "max": float(values.max()),
        "unclear": float((np.abs(values) < SIGNIFICANT * errors).mean()) if errors.any() else None,
        "negative": float((values < 0).mean()),
    }


def _places(values: list[float]) -> np.ndarray:
    """Place of each value in ascending order, from 1."""
    places = np.empty(len(values), dtype=int)
    places[np.argsort(values, kind="stable")] = np.arange(1, len(values) + 1)
    return places


def _share(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
