"""Values of two sides: keys that were changed, and quantities that were predicted or measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["count", "share", "seconds", "bytes", "score"]
"""`share`: of one. `score`: a loss, or what stands in for it."""


class Absent:
    """Stands for the value of a key that is not there; `None` is a value."""

    def __repr__(self) -> str:
        return "–"


ABSENT = Absent()


@dataclass(frozen=True)
class Change:
    """A key whose value differs; `ABSENT` where there is no such key."""

    key: str
    a: Any
    b: Any

    def document(self) -> dict[str, Any]:
        """Plain data; a side without the key is left out."""
        sides = {"a": self.a, "b": self.b}
        return {"key": self.key} | {name: value for name, value in sides.items() if value is not ABSENT}


@dataclass(frozen=True)
class Quantity:
    """A number with what it is uncertain by.

    Attributes:
        value: It.
        share: The same as a share of the dense network's, if that is known.
        std_error: Its standard error, if it has one.
        interval: Its confidence interval, if it has one.
    """

    value: float
    share: float | None = None
    std_error: float | None = None
    interval: tuple[float, float] | None = None

    def document(self) -> dict[str, Any]:
        """Plain data, without what is not known."""
        found = {"value": self.value, "share": self.share, "std_error": self.std_error, "interval": self.interval}
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class Line:
    """One quantity of both sides; None where a side does not have it."""

    name: str
    unit: Unit
    a: Quantity | None
    b: Quantity | None

    @property
    def differs(self) -> bool:
        """The sides do not say the same."""
        return self.a != self.b

    @property
    def unclear(self) -> bool:
        """The values differ by less than what they are uncertain by: their confidence intervals overlap."""
        if self.a is None or self.b is None or self.a.interval is None or self.b.interval is None:
            return False
        return self.a.interval[0] <= self.b.interval[1] and self.b.interval[0] <= self.a.interval[1]

    def document(self) -> dict[str, Any]:
        """Plain data."""
        sides = {"a": self.a and self.a.document(), "b": self.b and self.b.document()}
        return {"name": self.name, "unit": self.unit, **sides, "differs": self.differs}


def changes(a: Any, b: Any, key: str = "") -> Iterator[Change]:
    """Keys that differ, by dotted name, in the order of `a`; lists are values.

    Where one side has keys and the other none (`null`, or nothing), the keys are listed, each absent on the other side.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for name in [*a, *(name for name in b if name not in a)]:
            yield from changes(a.get(name, ABSENT), b.get(name, ABSENT), f"{key}.{name}" if key else str(name))
    elif isinstance(a, Mapping) and a and b in (None, ABSENT):
        yield from changes(a, {}, key)
    elif isinstance(b, Mapping) and b and a in (None, ABSENT):
        yield from changes({}, b, key)
    elif a != b or isinstance(a, bool) != isinstance(b, bool):  # True == 1, and 10 == 10.0
        yield Change(key, a, b)


def paired(a: Mapping[str, tuple[Unit, Quantity]], b: Mapping[str, tuple[Unit, Quantity]]) -> tuple[Line, ...]:
    """Lines of all quantities that a side has, in the order of `a`."""
    both = {**a, **{name: found for name, found in b.items() if name not in a}}
    return tuple(
        Line(name, unit, a[name][1] if name in a else None, b[name][1] if name in b else None)
        for name, (unit, _) in both.items()
    )
