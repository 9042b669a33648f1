"""What a pass is, and how passes are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..errors import Allowed, Refused, UserError
from .program import Program
from .verify import verify


@dataclass(frozen=True)
class JournalEntry:
    """One thing that a pass did, or refused to do.

    Attributes:
        where: Module path or node.
        what: What was done, one sentence.
        refused: Why it was not done, or None.
    """

    where: str
    what: str
    refused: Refused | None = None


@dataclass(frozen=True)
class PassResult:
    """What a pass gives back.

    Attributes:
        program: The new program; the old one is untouched.
        modified: Whether it differs from the old one.
        journal: What was done where, for the report.
    """

    program: Program
    modified: bool
    journal: tuple[JournalEntry, ...] = ()


@runtime_checkable
class Pass(Protocol):
    """A function from programs to programs, with its conditions."""

    @property
    def name(self) -> str:
        """Name in the history of programs and in the report."""
        ...

    def requires(self, program: Program) -> Allowed | Refused:
        """Whether the pass can run on this program."""
        ...

    def run(self, program: Program) -> PassResult:
        """The new program. Never changes the old one."""
        ...

    def ensures(self, program: Program) -> None:
        """Raises `InvalidProgram` if the new program is not what the pass promises."""
        ...


@dataclass(frozen=True)
class FunctionPass:
    """A pass that is a plain function of the program and runs on any.

    Attributes:
        name: Name in the report.
        function: From programs to programs; never changes its argument.
    """

    name: str
    function: Callable[[Program], Program]

    def requires(self, program: Program) -> Allowed | Refused:
        """Every program will do."""
        return Allowed()

    def run(self, program: Program) -> PassResult:
        """The new program; it counts as modified if its graph or one of its layers is another one."""
        new = self.function(program)
        modified = _structure(new) != _structure(program)
        return PassResult(new, modified, (JournalEntry("graph", self.name),) if modified else ())

    def ensures(self, program: Program) -> None:
        """Raises if the graph is not well formed."""
        program.graph.lint()


def _structure(program: Program) -> tuple[str, list[tuple[str, type]]]:
    return str(program.graph), [(name, type(module)) for name, module in program.module().named_modules()]


def run_pass(step: Pass, program: Program, *, allow_unmodified: bool = False, debug: bool = False) -> PassResult:
    """Runs a pass with its checks.

    Args:
        step: The pass.
        program: Its input.
        allow_unmodified: A pass that changes nothing is no error.
        debug: Verifies the whole program afterwards.

    Raises:
        UserError: The pass refuses the program, or changed nothing although it was asked for.
        InvalidProgram: The result is inconsistent.
    """
    answer = step.requires(program)
    if isinstance(answer, Refused):
        raise UserError(
            f"{step.name} cannot run on this program", where=answer.where, why=answer.reason, hint=answer.hint
        )
    result = step.run(program)
    if not result.modified and not allow_unmodified:
        refusals = [entry.refused for entry in result.journal if entry.refused]
        raise UserError(
            f"{step.name} changed nothing",
            where=refusals[0].where if refusals else "",
            why=refusals[0].reason if refusals else "the program holds nothing for it to do",
            hint=f"leave {step.name} out, or allow it to change nothing",
        )
    step.ensures(result.program)
    if debug:
        verify(result.program)
    return result


def run_passes(
    steps: Sequence[Pass], program: Program, *, allow_unmodified: bool = False, debug: bool = False
) -> PassResult:
    """Runs passes one after the other; the journals are joined."""
    journal: tuple[JournalEntry, ...] = ()
    modified = False
    for step in steps:
        result = run_pass(step, program, allow_unmodified=allow_unmodified, debug=debug)
        program, modified = result.program, modified or result.modified
        journal += result.journal
    return PassResult(program, modified, journal)
