"""The quadratic model of removing units against least squares by the book, and its searches against all selections."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from secateur.compress.chita.structured_cost import Widths
from secateur.compress.chita.structured_model import Part, Selection, solve
from secateur.compress.chita.structured_search import SEARCHES, swap, threshold


def _part(rng: np.random.Generator, rows: int, units: list[int], rank: int | None = None) -> Part:
    columns = len(units)
    factor = rng.normal(size=(rank or 2 * columns, columns))
    moments = factor.T @ factor / len(factor) + 0.05 * np.eye(columns)
    return Part(rng.normal(size=(rows, columns)), moments, np.array(units))


def _by_lstsq(part: Part, removed: np.ndarray) -> float:
    """f from ordinary least squares in the root of the moments: no normal equations, no Schur complement."""
    root = np.linalg.cholesky(part.moments).T
    gone = np.array([unit >= 0 and removed[unit] for unit in part.units])
    wanted = root @ part.weights.T
    fit = root[:, ~gone] @ np.linalg.lstsq(root[:, ~gone], wanted, rcond=None)[0] if (~gone).any() else 0.0
    return float(((wanted - fit) ** 2).sum())


def _widths(group_of: list[int], prices: list[float], limit: float, step: int = 1, least: int = 1) -> Widths:
    groups = max(group_of) + 1
    return Widths(
        np.array(group_of),
        np.full(groups, step),
        np.full(groups, least),
        lambda widths: (widths @ np.array(prices))[:, None].astype(float),
        np.array([limit]),
    )


def _parts(rng: np.random.Generator) -> list[Part]:
    """Two layers that share units 0 to 2; blocks of two columns and of one, and a column that always stays."""
    return [_part(rng, 3, [0, 0, 1, 1, 2, 2, -1]), _part(rng, 4, [2, 3, 0, 4, 1, 5])]


def test_leaving_and_coming_back_follow_least_squares() -> None:
    rng = np.random.default_rng(0)
    parts = _parts(rng)
    selection = Selection(parts, 6)
    for unit in (2, 0, 5, 2, 4, 0, 2, 1):
        forms, before, inside = selection.forms(), selection.rise, not selection.removed[unit]
        after = selection.removed.copy()
        after[unit] = inside
        change = sum(_by_lstsq(p, after) - _by_lstsq(p, selection.removed) for p in parts)
        selection.toggle(unit)
        assert forms[unit] == pytest.approx(abs(change), rel=1e-8)
        assert selection.rise - before == pytest.approx(change, rel=1e-8)
        assert selection.rise == pytest.approx(sum(_by_lstsq(p, selection.removed) for p in parts), rel=1e-8)


def test_the_direct_solution_is_that_of_least_squares_and_the_tableau() -> None:
    rng = np.random.default_rng(1)
    part = _part(rng, 3, [0, 0, 1, 2, 2, -1])
    removed = np.array([True, False, True])
    value, solution = solve(part, removed)
    assert value == pytest.approx(_by_lstsq(part, removed), rel=1e-10)
    assert np.array_equal(solution[:, [0, 1, 3, 4]], np.zeros((3, 4)))
    selection = Selection([part], 3)
    selection.toggle(0)
    selection.toggle(2)
    np.testing.assert_allclose(selection.tableaux[0].values[[2, 5]].T, solution[:, [2, 5]], rtol=1e-9)
    assert solve(part, np.array([False] * 3))[0] == pytest.approx(0.0, abs=1e-12)


def test_gates_that_are_free_make_up_for_those_that_are_closed() -> None:
    # Two gates with the same effect on every sample: closing one is free, the other opens twice as wide.
    effects = np.array([[1.0, 1.0, 0.3], [2.0, 2.0, -0.4], [-1.0, -1.0, 0.2]])
    part = Part(np.ones((1, 3)), effects.T @ effects + 1e-10 * np.eye(3), np.arange(3))
    value, gates = solve(part, np.array([True, False, False]))
    assert value < 1e-8
    np.testing.assert_allclose(gates, [[0.0, 2.0, 1.0]], atol=1e-6)
    assert Selection([part], 3).forms()[2] == pytest.approx(_by_lstsq(part, np.array([False, False, True])), rel=1e-6)


def test_swaps_mostly_find_the_best_of_all_selections_and_no_search_leaves_the_budget() -> None:
    ratios = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        parts = [_part(rng, 3, list(range(10)), rank=6), _part(rng, 2, [0, 0, 3, 3, 7, 7, 9, 9])]
        widths = _widths([0] * 4 + [1] * 6, [1.0, 2.0], limit=9.0)
        best = min(
            sum(solve(part, removed)[0] for part in parts)
            for size in range(11)
            for gone in combinations(range(10), size)
            if _allowed(widths, removed := np.isin(np.arange(10), gone))
        )
        for search in SEARCHES.values():
            found = search(parts, widths)
            assert _allowed(widths, found.removed)
            assert found.rise == pytest.approx(sum(_by_lstsq(p, found.removed) for p in parts), rel=1e-6)
        ratios.append([search(parts, widths).rise / best for search in (swap, threshold)])
    by_swaps, by_thresholds = np.array(ratios).T
    assert (np.array(ratios) > 1 - 1e-9).all()
    assert np.sum(by_swaps < 1 + 1e-9) >= 8 and by_swaps.max() < 2
    assert np.median(by_thresholds) < 1 + 1e-9


def _allowed(widths: Widths, removed: np.ndarray) -> bool:
    now = widths.widths(removed)
    return widths.fits(now) and bool((now >= widths.least).all())


def test_searches_find_the_units_that_others_can_replace() -> None:
    """Units 1 and 4 are combinations of others, though their own effects are the largest."""
    rng = np.random.default_rng(3)
    samples = rng.normal(size=(50, 6))
    samples[:, 1] = 3 * samples[:, 0] + 3 * samples[:, 2]
    samples[:, 4] = 4 * samples[:, 3] - 3 * samples[:, 5]
    part = Part(np.eye(6), samples.T @ samples / 50 + 1e-9 * np.eye(6), np.arange(6))
    widths = _widths([0, 0, 0, 1, 1, 1], [1.0, 1.0], limit=4.0, least=2)
    assert np.argsort(np.diag(part.moments))[-2:].tolist() in ([1, 4], [4, 1])
    found = swap([part], widths)
    assert found.rise < 1e-6 and found.removed.sum() == 2
    assert threshold([part], widths).rise < np.diag(part.moments).sum()


def test_steps_of_the_grid_are_kept_and_least_widths_end_the_search() -> None:
    rng = np.random.default_rng(4)
    parts = [_part(rng, 3, list(range(12)))]
    widths = _widths([0] * 8 + [1] * 4, [1.0, 1.0], limit=6.0, step=4, least=4)
    for search in SEARCHES.values():
        assert widths.widths(search(parts, widths).removed).tolist() == [4, 4]
    wide = _widths([0] * 8 + [1] * 4, [1.0, 1.0], limit=12.0, step=4, least=4)
    for search in SEARCHES.values():
        found = search(parts, wide)
        assert not found.removed.any() and found.rise == 0.0


def test_widths_off_the_grid_go_to_the_next_multiple() -> None:
    widths = _widths([0] * 10, [1.0], limit=9.0, step=4, least=4)
    now = widths.widths(np.zeros(10, dtype=bool))
    assert widths.down(now, 0) == 2 and widths.up(np.array([8])).tolist() == [2]
    assert widths.narrower(np.array([4])).tolist() == [] and widths.wider(np.array([8])).tolist() == []
