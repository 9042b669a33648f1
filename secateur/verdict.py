"""The verdict: what every gate measured, against which limit, and whether it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .errors import EnvironmentLacksError, ExitCode, UserError

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["passed", "failed", "measured", "skipped", "not asked"]
"""`measured`: reported without a limit. `skipped`: needs a device that is not here. `not asked`: switched off."""

FORMAT = 1
_MARKS = {
    "passed": "[green]passed[/]",
    "failed": "[bold red]FAILED[/]",
    "measured": "measured",
    "skipped": "[yellow]skipped[/]",
    "not asked": "[dim]not asked[/]",
}


@dataclass(frozen=True)
class GateResult:
    """One limit of one gate.

    Attributes:
        gate: Name of the gate: accuracy, parity, latency, size, kernels, legality.
        check: What of it was judged, such as `drop` or `batch 32`.
        state: Passed, failed, measured only, skipped for want of a device, or not asked.
        measured: The value, in `unit`; None if it could not be measured.
        limit: The limit, in `unit`; None if there is none.
        at_least: The limit is a lower one.
        unit: Unit of both, such as `ms`, `points`, `%`, `kB`.
        text: One sentence for people: what was seen, or why it could not be.
        details: Everything else that was measured, as plain data.
    """

    gate: str
    check: str
    state: State
    measured: float | None = None
    limit: float | None = None
    at_least: bool = False
    unit: str = ""
    text: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """It does not stand in the way."""
        return self.state != "failed"


@dataclass(frozen=True)
class Verdict:
    """What the gates said of an artifact.

    Attributes:
        artifact: Its directory.
        gates: One result for each limit, in the order of the suite.
        environment: Versions, processor, threads: what the numbers were measured with.
        seconds: How long it took.
        unverified: Why the artifact was not run on the device that it is for; empty if it was.
    """

    artifact: str
    gates: tuple[GateResult, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    unverified: str = ""

    @property
    def passed(self) -> bool:
        """No limit is broken, and at least one thing was looked at."""
        looked = any(result.state not in ("not asked", "skipped") for result in self.gates)
        return looked and all(result.passed for result in self.gates)

    @property
    def failures(self) -> tuple[GateResult, ...]:
        """The limits that are broken."""
        return tuple(result for result in self.gates if not result.passed)

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of the command line: 0, or 3."""
        return ExitCode.OK if self.passed else ExitCode.GATE

    def require_device(self) -> None:
        """Makes it an error that gates were skipped for want of a device.

        Raises:
            EnvironmentLacksError: The artifact holds every limit that was judged, but was not run on its device.
        """
        if self.passed and self.unverified:
            raise EnvironmentLacksError(
                "the artifact is not verified on its device",
                where=self.artifact,
                why=self.unverified,
                hint="check it on a machine with the device, or leave --require-device out",
            )

    @property
    def heading(self) -> str:
        """Whether it passed, and whether it was run on its device, in a few words."""
        return ("passed" if self.passed else "refused") + (", not verified on device" if self.unverified else "")

    def gate(self, name: str) -> tuple[GateResult, ...]:
        """The results of one gate."""
        return tuple(result for result in self.gates if result.gate == name)

    def to_json(self) -> str:
        """One document, with `passed` written out for readers that look no further."""
        return (
            json.dumps({"format": FORMAT, "passed": self.passed, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"
        )

    @staticmethod
    def from_json(text: str) -> Verdict:
        """Reads what `to_json` wrote.

        Raises:
            UserError: It is not a verdict of this version.
        """
        try:
            data = json.loads(text)
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']} is not {FORMAT}")
            gates = tuple(GateResult(**entry) for entry in data["gates"])
            unverified = data.get("unverified", "")
            return Verdict(data["artifact"], gates, data["environment"], data["seconds"], unverified)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "this is not a verdict",
                where="verdict.json",
                why=f"{type(error).__name__}: {error}",
                hint="run secateur check again",
            ) from None

    def save(self, path: str | Path) -> None:
        """Writes the JSON form."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def table(self) -> Table:
        """The results as a table for a terminal."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"{self.heading}: {escape(self.artifact)}", title_justify="left")
        for heading in ("gate", "check", "measured", "limit", "", "what was seen"):
            table.add_column(heading, justify="right" if heading in {"measured", "limit"} else "left")
        for result in self.gates:
            table.add_row(
                result.gate,
                escape(result.check),
                quantity(result.measured, result.unit),
                ("≥ " if result.at_least else "≤ ") + quantity(result.limit, result.unit)
                if result.limit is not None
                else "",
                _MARKS[result.state],
                escape(result.text),
            )
        return table


def quantity(value: float | None, unit: str) -> str:
    """A number with its unit, in four significant digits; nothing for None."""
    if value is None:
        return ""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{text}{'' if unit in {'', '%'} else ' '}{unit}"
