"""A verdict passes, fails and survives its written form."""

import io
import json

import pytest
from rich.console import Console

from secateur.errors import ExitCode, UserError
from secateur.runtime_tests.judge import Judge
from secateur.verdict import GateResult, Verdict, quantity

PASSED = GateResult("size", "model.onnx", "passed", 187.3, 400.0, unit="kB", text="17% [of] dense")
FAILED = GateResult("accuracy", "drop", "failed", 1.7, 1.0, unit="points")
SEEN = GateResult("latency", "batch 1", "measured", 0.18, unit="ms", details={"batch": 1})
OFF = GateResult("parity", "", "not asked")


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        ((PASSED, SEEN, OFF), ExitCode.OK),
        ((PASSED, FAILED), ExitCode.GATE),
        ((SEEN,), ExitCode.OK),
        ((OFF,), ExitCode.GATE),  # nothing passes because nobody looked
        ((), ExitCode.GATE),
    ],
)
def test_it_passes_if_something_was_looked_at_and_nothing_is_broken(gates, code):
    verdict = Verdict("out", gates)
    assert verdict.exit_code is code
    assert verdict.passed == (code is ExitCode.OK)
    assert verdict.failures == tuple(g for g in gates if g is FAILED)


def test_it_survives_json():
    verdict = Verdict("out/µ", (PASSED, FAILED, SEEN, OFF), {"cpu": "x"}, 1.5)
    assert Verdict.from_json(verdict.to_json()) == verdict
    assert json.loads(verdict.to_json())["passed"] is False


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 1, "gates": [{}]}'])
def test_what_is_no_verdict_is_refused(text):
    with pytest.raises(UserError, match="not a verdict"):
        Verdict.from_json(text)


def test_the_table_says_it_all():
    screen = io.StringIO()
    Console(file=screen, width=120).print(Verdict("out", (PASSED, FAILED, OFF)).table())
    for text in ("refused: out", "187.3 kB", "≤ 400 kB", "FAILED", "17% [of] dense", "not asked"):
        assert text in screen.getvalue()


def test_numbers_and_their_units():
    assert quantity(None, "kB") == ""
    assert quantity(12345.6, "kB") == "12,346 kB"
    assert quantity(38.4, "%") == "38.4%"
    assert quantity(0.0, "") == "0"


@pytest.mark.parametrize(
    ("value", "limit", "at_least", "state"),
    [
        (1.0, 1.0, False, "passed"),
        (1.01, 1.0, False, "failed"),
        (0.99, 0.99, True, "passed"),
        (0.98, 0.99, True, "failed"),
        (5.0, None, False, "measured"),
        (float("nan"), None, False, "failed"),
        (float("nan"), 1.0, False, "failed"),
        (float("inf"), 1.0, False, "failed"),
        (float("inf"), 1.0, True, "passed"),
    ],
)
def test_a_judge_compares_and_refuses_what_is_no_number(value, limit, at_least, state):
    result = Judge("size")("x", value, limit, at_least=at_least)
    assert result.state == state
    json.dumps(result.measured, allow_nan=False)


def test_what_cannot_be_measured_fails_only_against_a_limit():
    judge = Judge("size")
    assert judge.cannot("x", "why", 1.0).state == "failed"
    assert judge.cannot("x", "why").state == "measured"
    assert judge.broken("why").state == "failed"
    assert [r.gate for r in judge.results] == ["size"] * 3
