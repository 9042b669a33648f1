"""Did you mean …: the nearest known word to one that a person mistyped."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate that looks most like `word`, or None if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """The suggestion as a suffix of a message: ` (did you mean x?)`, or nothing if no candidate is near."""
    found = nearest(word, candidates)
    return f" (did you mean {found}?)" if found and found != word else ""
