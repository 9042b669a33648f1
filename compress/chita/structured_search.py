"""Which units to remove within a budget: local search by swaps, and iterative hard thresholding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .structured_cost import Widths
from .structured_model import Part, Selection, solve

_WORTH = 1e-9
"""A change has to lower f by this share of it: more than rounding, so that every search ends."""

_ROUNDS = 20
"""Rounds of exchanges, or steps of thresholding, at most."""


def swap(parts: Sequence[Part], widths: Widths) -> Selection:
    """Greedy removal, then exchanges of units and of steps between groups while they lower f.

    Every removal counts what the remaining units can make up for, given all that is removed already. Exchanges inside a
    group (one unit comes back, another leaves) keep the cost; exchanges between groups widen one by a step and cut the
    others until the budget holds again.

    Args:
        parts: The quadratic model.
        widths: Costs and steps.

    Returns:
        The selection; over budget only if every group is at its least width.
    """
    selection = Selection(parts, len(widths.group_of))
    _cut(selection, widths)
    _give_back(selection, widths)
    for _ in range(_ROUNDS):
        before = selection.rise
        _exchange_units(selection, widths)
        selection = _exchange_steps(selection, widths)
        if before - selection.rise <= _WORTH * abs(before):
            break
    return selection


def threshold(parts: Sequence[Part], widths: Widths) -> Selection:
    """Iterative hard thresholding with a closed-form solution on every support.

    From the solution B on the current support a step along the preconditioned gradient gives V = B + τ (W - B) H / H_uu
    in the blocks of units; the units with the largest tr(V_u H_uu V_uᵀ) stay, as far as the budget lets them; then the
    support is solved for. τ is halved until f falls. The first support is that of the uncompensated diagonal.

    Args:
        parts: The quadratic model.
        widths: Costs and steps.

    Returns:
        As `swap`.
    """
    removed = _project(_saliency(parts, np.zeros(len(widths.group_of), dtype=bool), 0.0), widths)
    best = _rise(parts, removed)
    for _ in range(_ROUNDS):
        step = 1.0
        for _ in range(6):
            other = _project(_saliency(parts, removed, step), widths)
            rise = _rise(parts, other)
            if best - rise > _WORTH * abs(best):
                break
            step /= 2
        else:
            break
        removed, best = other, rise
    selection = Selection(parts, len(widths.group_of))
    for unit in np.flatnonzero(removed):
        selection.toggle(int(unit))
    return selection


SEARCHES: Mapping[str, Callable[[Sequence[Part], Widths], Selection]] = {"swap": swap, "iht": threshold}
"""Searches by name."""


def _cut(selection: Selection, widths: Widths, held: int | None = None) -> None:
    """Removes steps, the least rise for its gain first, until the budget holds or nothing can go."""
    while True:
        now = widths.widths(selection.removed)
        if widths.fits(now):
            return
        groups = widths.narrower(now, held)
        gains = widths.gains(now, groups) if len(groups) else np.zeros(0)
        groups, gains = groups[gains > 0.0], gains[gains > 0.0]
        if not len(groups):
            return
        forms = np.where(selection.removed, np.inf, selection.forms())
        prices = []
        for group, gain in zip(groups, gains, strict=True):
            own = np.sort(forms[widths.group_of == group])
            prices.append(own[: widths.down(now, group)].sum() / gain)
        group = int(groups[int(np.argmin(prices))])
        for _ in range(widths.down(now, group)):
            _leave(selection, widths.group_of == group)


def _leave(selection: Selection, among: np.ndarray) -> int:
    """Removes the unit that costs least."""
    forms = np.where(selection.removed | ~among, np.inf, selection.forms())
    unit = int(np.argmin(forms))
    selection.toggle(unit, float(forms[unit]))
    return unit


def _enter(selection: Selection, among: np.ndarray) -> int:
    """Brings back the unit that gains most."""
    forms = np.where(selection.removed & among, selection.forms(), -np.inf)
    unit = int(np.argmax(forms))
    selection.toggle(unit, float(forms[unit]))
    return unit


def _give_back(selection: Selection, widths: Widths, held: int | None = None) -> None:
    """Brings back steps, the largest fall of f first, while the budget holds."""
    while True:
        now = widths.widths(selection.removed)
        groups = widths.wider(now, held)
        if not len(groups) or not widths.fits(now):
            return
        forms, up = np.where(selection.removed, selection.forms(), 0.0), widths.up(now)
        falls = [np.sort(forms[widths.group_of == group])[::-1][: up[group]].sum() for group in groups]
        group = int(groups[int(np.argmax(falls))])
        for _ in range(up[group]):
            _enter(selection, widths.group_of == group)


def _exchange_units(selection: Selection, widths: Widths) -> None:
    """Lets the best removed unit of a group come back for the worst one that is in, as long as f falls."""
    for group in range(len(widths.step)):
        own = widths.group_of == group
        for _ in range(int(own.sum())):
            if not (selection.removed & own).any():
                break
            before = selection.rise
            came = _enter(selection, own)
            went = _leave(selection, own)
            if came == went:
                break
            if before - selection.rise <= _WORTH * abs(before):
                selection.toggle(went)
                selection.toggle(came)
                break


def _exchange_steps(selection: Selection, widths: Widths) -> Selection:
    """Widens or narrows each group in turn by a step, lets the others make up for it, and keeps what lowers f."""
    for group in range(len(widths.step)):
        for wider in (True, False):
            trial = _shifted(selection, widths, group, wider=wider)
            if trial is None or not widths.fits(widths.widths(trial.removed)):
                continue
            if selection.rise - trial.rise > _WORTH * abs(selection.rise):
                selection = trial
    return selection


def _shifted(selection: Selection, widths: Widths, group: int, *, wider: bool) -> Selection | None:
    """A copy with a group one step wider or narrower and the others around it; None if there is no such step."""
    now = widths.widths(selection.removed)
    own = widths.group_of == group
    count = int(widths.up(now)[group]) if wider else widths.down(now, group)
    if not count or (not wider and group not in widths.narrower(now)):
        return None
    trial = selection.copy()
    for _ in range(count):
        if wider:
            _enter(trial, own)
        else:
            _leave(trial, own)
    _cut(trial, widths, held=group)
    _give_back(trial, widths, held=None if wider else group)
    return trial


def _saliency(parts: Sequence[Part], removed: np.ndarray, step: float) -> np.ndarray:
    """tr(V_u H_uu V_uᵀ) of every unit after a gradient step from the solution on the support: float64 [units]."""
    found = np.zeros(len(removed))
    for part in parts:
        solution = solve(part, removed)[1]
        residual = (part.weights - solution) @ part.moments
        for unit in np.unique(part.units[part.units >= 0]):
            k = np.flatnonzero(part.units == unit)
            block = part.moments[np.ix_(k, k)]
            moved = solution[:, k] + step * np.linalg.solve(block, residual[:, k].T).T
            found[unit] += np.einsum("rc,cd,rd->", moved, block, moved)
    return found


def _project(values: np.ndarray, widths: Widths) -> np.ndarray:
    """The units to remove, bool [units], so that the budget holds at the least sum of the values of what goes."""
    part = Part(np.sqrt(np.maximum(values, 0.0))[None] + 1e-30, np.eye(len(values)), np.arange(len(values)))
    separable = _Separable(part.weights[0] ** 2)
    _cut(separable, widths)  # type: ignore[arg-type]
    _give_back(separable, widths)  # type: ignore[arg-type]
    return separable.removed


class _Separable:
    """A selection in which every unit has a price of its own."""

    def __init__(self, values: np.ndarray) -> None:
        self._values, self.removed, self.rise = values, np.zeros(len(values), dtype=bool), 0.0

    def forms(self) -> np.ndarray:
        return self._values

    def toggle(self, unit: int, form: float | None = None) -> None:
        self.rise += -self._values[unit] if self.removed[unit] else self._values[unit]
        self.removed[unit] = not self.removed[unit]


def _rise(parts: Sequence[Part], removed: np.ndarray) -> float:
    return sum(solve(part, removed)[0] for part in parts)
