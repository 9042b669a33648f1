"""Budgets read like sentences, and say what is missing."""

import pytest

from secateur.compress.budget import Amount, Budget
from secateur.errors import UserError


@pytest.mark.parametrize(
    ("name", "text", "amount"),
    [
        ("params", "50%", Amount(0.5, True)),
        ("params", "2.5M", Amount(2.5e6, False)),
        ("params", "300k", Amount(3e5, False)),
        ("macs", "1.2G", Amount(1.2e9, False)),
        ("macs", " 20 m ", Amount(2e7, False)),
        ("macs", ".5G", Amount(5e8, False)),
        ("latency", "2ms", Amount(0.002, False)),
        ("latency", "60%", Amount(0.6, True)),
        ("latency", "150us", Amount(150e-6, False)),
        ("size", "400kB", Amount(4e5, False)),
        ("size", "1MiB", Amount(2**20, False)),
    ],
)
def test_amounts(name, text, amount):
    found = Budget(**{name: text}).amount(name)
    assert found is not None and found.relative == amount.relative and found.value == pytest.approx(amount.value)


def test_what_is_not_given_is_no_limit():
    budget = Budget(macs="50%", accuracy_drop=0.5)
    assert budget.amount("params") is None and budget.accuracy_drop == 0.5
    assert budget.given() == {"macs": "50%", "accuracy_drop": 0.5}


def test_per_cent_are_of_the_dense_model():
    assert Amount(0.25, True).of(1000) == 250 and Amount(300.0, False).of(1000) == 300


@pytest.mark.parametrize("value", [50, 0.5, "50", "2000000"])
@pytest.mark.parametrize("name", ["params", "macs", "latency", "size"])
def test_a_budget_without_a_unit_is_refused_with_what_to_type(name, value):
    with pytest.raises(UserError, match="budget without a unit") as caught:
        Budget(**{name: value})
    assert f"--max-{name}" in caught.value.hint and "%" in caught.value.hint


@pytest.mark.parametrize("value", ["0%", "-3M", "1e999M", "many", "", "5 parsecs", "2ms", True, ["50%"], "nan%"])
def test_nonsense_is_refused(value):
    with pytest.raises(UserError):
        Budget(params=value)


@pytest.mark.parametrize("drop", [-0.1, float("nan"), "much"])
def test_an_accuracy_drop_is_a_number_of_points(drop):
    with pytest.raises(UserError, match="accuracy_drop"):
        Budget(accuracy_drop=drop)


def test_a_misspelled_budget_gets_a_suggestion():
    with pytest.raises(UserError, match=r"unknown budget 'mac' \(did you mean macs\?\)"):
        Budget(mac="50%")


def test_a_budget_cannot_change():
    with pytest.raises(ValueError):
        Budget(macs="50%").macs = "60%"
