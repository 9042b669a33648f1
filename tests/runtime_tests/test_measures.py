"""Measures against their definitions."""

import math

import numpy as np
import pytest

from secateur.runtime_tests.measures import Comparison, mean_std_error, paired_drop

RNG = np.random.default_rng(0)


def test_a_paired_drop_is_the_difference_of_the_means():
    dense, model = RNG.integers(0, 2, 500), RNG.integers(0, 2, 500)
    found = paired_drop(dense, model)
    assert found.drop == pytest.approx(100 * (dense.mean() - model.mean()))
    assert found.lost == ((dense == 1) & (model == 0)).sum()
    assert found.gained == ((dense == 0) & (model == 1)).sum()


def test_its_standard_error_is_mcnemars():
    dense, model = RNG.integers(0, 2, 400), RNG.integers(0, 2, 400)
    found = paired_drop(dense, model)
    n, b, c = 400, found.lost, found.gained
    assert found.std_error == pytest.approx(100 * math.sqrt(b + c - (b - c) ** 2 / n) / n)


def test_pairing_removes_the_error_that_both_share():
    dense = RNG.integers(0, 2, 1000)
    model = dense.copy()
    model[:5] = 1 - model[:5]
    assert paired_drop(dense, model).std_error < mean_std_error(dense) / 5


def test_the_standard_error_covers_the_truth_about_as_often_as_it_should():
    p, n, inside = 0.9, 400, 0
    for seed in range(300):
        scores = np.random.default_rng(seed).random(n) < p
        inside += abs(100 * scores.mean() - 100 * p) <= 2 * mean_std_error(scores.astype(float))
    assert 0.91 <= inside / 300 <= 0.985


def test_a_comparison_over_batches_is_that_of_the_whole():
    a = RNG.normal(3.0, 2.0, (90, 5))
    b = a + RNG.normal(0, 0.3, a.shape)
    whole, parts = Comparison(), Comparison()
    whole.update(a, b)
    for start in range(0, 90, 32):
        parts.update(a[start : start + 32], b[start : start + 32])
    assert parts.error == pytest.approx(whole.error)
    assert parts.agreement == whole.agreement == (a.argmax(1) == b.argmax(1)).mean()
    assert whole.error == pytest.approx(np.sqrt(((a - b) ** 2).mean()) / a.std())
    assert whole.max_error == pytest.approx(np.abs(a - b).max())


def test_classes_lie_along_axis_1_and_every_position_counts():
    a = np.zeros((2, 4, 3))
    a[:, 0] = 1
    b = a.copy()
    b[1, :, 2] = [0, 5, 0, 0]
    both = Comparison()
    both.update(a, b)
    assert both.agreeing == pytest.approx(1 + 2 / 3)


def test_values_that_are_not_finite_are_counted_and_do_not_hide():
    both = Comparison()
    both.update(np.array([[1.0, 2.0]]), np.array([[np.nan, np.inf]]))
    assert both.not_finite == 2


def test_constant_outputs_have_no_scale_to_compare_with():
    same, other = Comparison(), Comparison()
    same.update(np.ones((3, 2)), np.ones((3, 2)))
    other.update(np.ones((3, 2)), np.ones((3, 2)) + 1e-3)
    assert same.error == 0.0
    assert other.error == math.inf


def test_outputs_of_different_shape_cannot_be_compared():
    with pytest.raises(ValueError, match="shape"):
        Comparison().update(np.ones((3, 2)), np.ones((3, 1)))
