"""One run of the gate suite, as pytest sees it: the fixtures, what a broken limit does to a test, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ..environment import environment
from ..errors import UserError
from ..gates import CheckFile, Gates
from ..recipe_file import read_yaml
from ..validation import explain
from ..verdict import Verdict
from .judge import Judge, sentence
from .subject import Subject

JUDGE = pytest.StashKey[Judge]()
_ORDER = tuple(Gates.model_fields)


class GateRun:
    """Hands out the artifact, and gathers the results.

    Args:
        config: Holds the options of the suite.

    Raises:
        UserError: There is no artifact, or the gate file is wrong.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.directory = Path(str(config.getoption("--artifact"))).absolute()
        if not self.directory.is_dir():
            raise UserError(
                "there is no artifact here", where=str(self.directory), hint="give the directory that `export` wrote"
            )
        self.verdict_file: str | None = config.getoption("--verdict")
        self.subject_under_test = Subject(self.directory, *_read(config.getoption("--gates")))
        self.judges: list[Judge] = []
        self.crashed = False
        self.started = time.monotonic()

    @pytest.fixture
    def subject(self) -> Subject:
        """The artifact under test."""
        return self.subject_under_test

    @pytest.fixture
    def judge(self, request: pytest.FixtureRequest) -> Judge:
        """Takes what the gate measures; the gate is named by its file, `test_<gate>.py`."""
        judge = request.node.stash[JUDGE] = Judge(_gate_name(request.node))
        self.judges.append(judge)
        return judge

    @pytest.fixture
    def gate(self, judge: Judge) -> Any:
        """The limits of the gate; a gate that is not asked is skipped."""
        limits = getattr(self.subject_under_test.check.gates, judge.gate)
        if limits is None:
            judge.not_asked()
            pytest.skip("not asked")
        return limits

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Runs the gates in the order of `Gates`: whether the files are sound comes first."""
        known = [item for item in items if _gate_name(item) in _ORDER]
        items[:] = sorted(known, key=lambda item: _ORDER.index(_gate_name(item)))

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
        """Fails a test whose gate broke a limit, or could not be judged for a reason that lies outside secateur."""
        judge = pyfuncitem.stash[JUDGE]
        try:
            outcome = yield
        except UserError as error:
            judge.broken("; ".join(part for part in (error.what, error.where, error.why, error.hint) if part))
            outcome = True
        failed = [result for result in judge.results if not result.passed]
        if failed:
            pytest.fail("\n".join(map(sentence, failed)), pytrace=False)
        return outcome

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Notes what was measured in the JUnit file, and whether a test crashed instead of judging."""
        judge = item.stash.get(JUDGE, None)
        if call.when == "call" and judge is not None:
            item.user_properties.extend(
                (f"{r.gate} {r.check}".strip(), f"{r.state}: {sentence(r)}") for r in judge.results
            )
        report = yield
        self.crashed |= report.failed and not (call.excinfo and call.excinfo.errisinstance(pytest.fail.Exception))
        return report

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        """Writes the verdict, unless a crash has left it incomplete."""
        if self.verdict_file and self.judges and not self.crashed:
            results = tuple(result for judge in self.judges for result in judge.results)
            seconds = round(time.monotonic() - self.started, 3)
            unverified = self.subject_under_test.unverified
            Verdict(str(self.directory), results, environment(), seconds, unverified).save(self.verdict_file)


def _gate_name(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_")


def _read(path: str | None) -> tuple[CheckFile, Path]:
    """The gates file, and the directory that its factories are relative to."""
    if path is None:
        return CheckFile(), Path.cwd()
    file = Path(path).absolute()
    try:
        return CheckFile.model_validate(read_yaml(file, what="gates file") or {}), file.parent
    except ValidationError as error:
        raise UserError(
            "the gates file has errors",
            where=str(file),
            why=explain(error, CheckFile),
            hint="write `gates:` with the gates, `data:` with a factory, and `metric:`",
        ) from None
