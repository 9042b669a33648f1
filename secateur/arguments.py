"""Checks of what the public functions are given: a wrong kind of thing is named, with what makes the right one."""

from __future__ import annotations

from typing import Any

from .compress.budget import Budget
from .compress.heal.settings import TrainSettings
from .compress.plan import Plan
from .compress.sensitivity.table import Sensitivity
from .errors import UserError
from .loaders import check_loader
from .passes.program import Program

_MADE_BY = {
    Program: "secateur.capture(model, example_inputs) makes one",
    Sensitivity: "secateur.rank(program, loader) makes one",
    Plan: "secateur.plan(program, table, budget=…) makes one, Plan.load(path) reads one",
    Budget: "write Budget(macs='50%')",
    TrainSettings: "write TrainSettings(epochs=1)",
}


def expect(where: str, kind: type, **given: Any) -> None:
    """Refuses values of another type; None passes, for what may be left out.

    Args:
        where: The public function.
        kind: The type.
        given: Values by the name of their argument.

    Raises:
        UserError: Names the argument, its type, and what makes the right one.
    """
    for name, value in given.items():
        if value is not None and not isinstance(value, kind):
            found = value.__name__ if isinstance(value, type) else type(value).__name__
            raise UserError(f"{name} must be a {kind.__name__}, not {found}", where=where, hint=_MADE_BY[kind])


def expect_given(where: str, kind: type, **given: Any) -> None:
    """As `expect`, but None is refused as well."""
    for name, value in given.items():
        if value is None:
            raise UserError(f"{name} must be a {kind.__name__}, not None", where=where, hint=_MADE_BY[kind])
    expect(where, kind, **given)


def expect_loaders(where: str, **loaders: Any) -> None:
    """Refuses loaders that can be read only once, before anything of them is read; None passes."""
    for name, loader in loaders.items():
        if loader is not None:
            check_loader(loader, name, where=where)
