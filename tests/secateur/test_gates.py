"""Limits read like sentences, and nothing else is taken for one."""

import pytest
from pydantic import ValidationError

from secateur.errors import did_you_mean
from secateur.gates import CheckFile, Gates, LatencyGate, SizeGate, limit_of
from secateur.validation import explain, known_keys


@pytest.mark.parametrize(
    ("text", "seconds"), [("2ms", 0.002), ("0.5 s", 0.5), ("150us", 150e-6), ("1e-1ms", 1e-4), (" 3 MS ", 0.003)]
)
def test_times(text, seconds):
    limit = limit_of("latency", text)
    assert limit.value == pytest.approx(seconds)
    assert not limit.relative


@pytest.mark.parametrize(("text", "size"), [("400kB", 400_000), ("1MiB", 2**20), ("12b", 12), ("0.5MB", 500_000)])
def test_sizes(text, size):
    assert limit_of("size", text).value == size


def test_shares():
    limit = LatencyGate(max="60%").limit
    assert limit.value == pytest.approx(0.6)
    assert limit.relative


@pytest.mark.parametrize(
    "text", ["2", "ms", "2 min", "-1ms", "0ms", "0%", "", "60 %%", "2ms3", "nan%", "inf ms", "400kB"]
)
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValidationError):
        LatencyGate(max=text)


def test_a_missing_unit_names_those_that_there_are():
    with pytest.raises(ValidationError, match="30% or 400kB"):
        SizeGate(max="400")


@pytest.mark.parametrize(
    "gate",
    [
        {"latency": {"batches": []}},
        {"latency": {"batches": [1, 1]}},
        {"latency": {"batches": [0]}},
        {"latency": {"threads": 0}},
        {"parity": {"min_agreement": 1.5}},
        {"accuracy": {"max_drop": float("nan")}},
        {"accuracy": {"max_dorp": 1}},
        {"kernels": {"min_integer_share": -0.1}},
    ],
)
def test_gates_that_make_no_sense_are_refused(gate):
    with pytest.raises(ValidationError):
        Gates(**gate)


def test_gates_survive_their_written_form():
    check = CheckFile(gates=Gates(latency={"max": "2ms", "batches": (4,)}, parity=None), metric="m:f")
    assert CheckFile.model_validate(check.model_dump(mode="json")) == check
    assert check.gates.parity is None
    assert check.gates.legality is not None


def test_errors_name_the_key_and_what_was_probably_meant():
    with pytest.raises(ValidationError) as caught:
        CheckFile.model_validate({"gates": {"latency": {"maxx": 1, "threads": 0}}, "data": {}, "metrik": "x"})
    said = explain(caught.value, CheckFile)
    assert "unknown key gates.latency.maxx (did you mean max?)" in said
    assert "unknown key metrik (did you mean metric?)" in said
    assert "missing key data.factory" in said
    assert "gates.latency.threads" in said
    assert "(given: 0)" in said


def test_suggestions_are_near_or_absent():
    assert did_you_mean("latancy", Gates.model_fields) == " (did you mean latency?)"
    assert did_you_mean("Latency", Gates.model_fields) == " (did you mean latency?)"
    assert did_you_mean("zzz", Gates.model_fields) == ""
    assert known_keys(CheckFile, ["gates", "size"]) == ["max"]
    assert known_keys(CheckFile, ["gates", "nothing"]) == []
