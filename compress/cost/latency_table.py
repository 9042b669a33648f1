"""The latency table: measured times of layer shapes on a coarse grid of widths, and what lies between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ...export.layer_model import LayerShape
from ...export.layer_times import Timing, time_layers
from ...export.targets import Target
from .latency_cache import LatencyCache

PERIOD = 16
"""Integer and blocked kernels compute output channels in blocks; widths with the same remainder behave alike."""

_EXACT = 96
_FEW = 8
_INPUTS = 5
_OUTPUTS = 4

Pair = tuple[int, int]
"""Channels in, channels out."""


class LatencyTable:
    """Times of layers by family (all of a `LayerShape` but its channels) and pair of widths.

    Args:
        points: Measured times: by family, whose channels are zero, and pair.
    """

    def __init__(self, points: Mapping[LayerShape, Mapping[Pair, Timing]]) -> None:
        self.points = {family: dict(found) for family, found in points.items()}
        self._lines = {family: _by_input(found) for family, found in self.points.items()}
        self._read: dict[tuple[LayerShape, Pair], Timing] = {}

    def replaced(self, times: Mapping[tuple[LayerShape, Pair], Timing]) -> LatencyTable:
        """The table with some points measured anew."""
        points = {family: dict(found) for family, found in self.points.items()}
        for (family, pair), timing in times.items():
            points.setdefault(family, {})[pair] = timing
        return LatencyTable(points)

    def at(self, family: LayerShape, pairs: np.ndarray) -> np.ndarray:
        """Microseconds, float64 [pairs], at widths int64 [pairs, 2]: those of `timing`, for many at once."""
        if len(pairs) <= _FEW:
            return np.array([self.timing(family, (int(i), int(o))).micros for i, o in pairs])
        inputs, row = np.unique(pairs[:, 0], return_inverse=True)
        outputs, column = np.unique(pairs[:, 1], return_inverse=True)
        lines = self._lines[family]
        known = np.array(sorted(lines), dtype=np.int64)
        measured = np.array([[_among_outputs(lines[int(i)], int(o)).micros for o in outputs] for i in known])
        found = _between_rows(known, measured, inputs)
        place_in, place_out = ({int(size): place for place, size in enumerate(sizes)} for sizes in (inputs, outputs))
        for (i, o), timing in self.points[family].items():
            if i in place_in and o in place_out:
                found[place_in[i], place_out[o]] = timing.micros
        return found[row, column]

    def timing(self, family: LayerShape, pair: Pair) -> Timing:
        """The time at a pair of widths, measured or interpolated.

        Between measured input widths it is linear. Between measured output widths it is linear among those with the
        same remainder modulo `PERIOD`, as others may take another kernel. Where a narrower layer was measured to be
        slower than a wider one there is nothing to interpolate, and the larger of the two is taken.

        Raises:
            KeyError: Nothing of this family was measured.
        """
        known = self._read.get((family, pair))
        if known is None:
            found, (inputs, outputs) = self.points[family], pair
            columns = {i: _among_outputs(times, outputs) for i, times in self._lines[family].items()}
            known = found[pair] if pair in found else _between(columns, inputs)
            self._read[family, pair] = known
        return known


def measure_table(
    wanted: Mapping[LayerShape, Sequence[np.ndarray]],
    target: Target,
    *,
    threads: int = 1,
    seconds: float = 45.0,
    cache: LatencyCache | None = None,
    progress: Callable[..., None] | None = None,
) -> LatencyTable:
    """Measures what a table lacks.

    Args:
        wanted: For each family the pairs of widths that may be asked for, int64 [pairs, 2] each.
        target: The target.
        threads: Threads of its runtime.
        seconds: Time for measuring.
        cache: What was measured before, and where to add to; None measures all of it and keeps nothing.
        progress: Called as `progress(done, total)`, in layer shapes that had to be measured.
    """
    known = cache.read() if cache else {}
    grid = {family: grid_points(np.concatenate(list(pairs))) for family, pairs in wanted.items()}
    shapes = {(family, p): _shape(family, p) for family, pairs in grid.items() for p in pairs}
    missing = sorted({s for s in shapes.values() if s.key not in known}, key=lambda s: s.key)
    measured: dict[LayerShape, Timing] = {}
    if missing:
        if cache:
            cache.add({})  # whether times can be kept is found out before the measuring, not after it
        measured = time_layers(missing, target, threads=threads, seconds=seconds, progress=progress)
    times = {**known, **{shape.key: timing for shape, timing in measured.items()}}
    if cache and measured:
        cache.add({shape.key: timing for shape, timing in measured.items()})
    points: dict[LayerShape, dict[Pair, Timing]] = {}
    for (family, pair), shape in shapes.items():
        points.setdefault(family, {})[pair] = times[shape.key]
    return LatencyTable(points)


def grid_points(pairs: np.ndarray) -> list[Pair]:
    """The pairs of widths to measure: all if they are few, else a coarse grid over them.

    Args:
        pairs: int64 [pairs, 2]: all that may be asked for.
    """
    pairs = np.unique(pairs, axis=0)
    if len(pairs) <= _EXACT:
        return [(int(i), int(o)) for i, o in pairs]
    inputs, outputs = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
    chosen: set[int] = set()
    for remainder in np.unique(outputs % PERIOD):
        chosen |= set(_spread(outputs[outputs % PERIOD == remainder], _OUTPUTS))
    if (pairs[:, 0] == pairs[:, 1]).all():  # depthwise
        return [(o, o) for o in sorted(chosen)]
    return [(i, o) for i in _spread(inputs, _INPUTS) for o in sorted(chosen)]


def _spread(values: np.ndarray, count: int) -> list[int]:
    """At most so many of ascending values, the ends among them, close together where they are small."""
    if len(values) <= count:
        return [int(v) for v in values]
    wanted = np.geomspace(values[0], values[-1], count)
    return sorted({int(values[np.abs(values - w).argmin()]) for w in wanted})


def _shape(family: LayerShape, pair: Pair) -> LayerShape:
    return replace(family, inputs=pair[0], outputs=pair[1])


def _by_input(points: Mapping[Pair, Timing]) -> dict[int, dict[int, Timing]]:
    """Times by inputs and outputs; one point alone (rounds add such) is no line where there are several."""
    found: dict[int, dict[int, Timing]] = {}
    for (i, o), timing in points.items():
        found.setdefault(i, {})[o] = timing
    lines = {i: times for i, times in found.items() if len(times) > 1 or len(points) < 3}
    return lines or found


def _among_outputs(times: Mapping[int, Timing], outputs: int) -> Timing:
    alike = {o: t for o, t in times.items() if (o - outputs) % PERIOD == 0}
    return _between(alike or times, outputs)


def _between(times: Mapping[int, Timing], at: int) -> Timing:
    """Linear between the neighbours; beyond the ends in proportion to the nearest end and its neighbour."""
    if at in times:
        return times[at]
    known = np.array(sorted(times))
    place = int(np.searchsorted(known, at))
    if len(known) == 1:
        only = times[int(known[0])]
        return Timing(only.micros, only.mad, only.rounds)
    low, high = known[max(min(place, len(known) - 1), 1) - 1], known[max(min(place, len(known) - 1), 1)]
    a, b = times[int(low)], times[int(high)]
    rounds = min(a.rounds, b.rounds)
    if a.micros > b.micros and low < at < high:
        return Timing(a.micros, max(a.mad, b.mad), rounds)
    share = (at - low) / (high - low)
    return Timing(max(a.micros + share * (b.micros - a.micros), 0.0), max(a.mad, b.mad), rounds)


def _between_rows(known: np.ndarray, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """`_between` for many: float64 [at, columns] at int64 [at], from values [known, columns]."""
    if len(known) == 1:
        return np.repeat(values, len(at), axis=0)
    place = np.clip(np.searchsorted(known, at), 1, len(known) - 1)
    low, high, here = (x[:, None] for x in (known[place - 1], known[place], at))
    a, b = values[place - 1], values[place]
    line = np.maximum(a + (here - low) / (high - low) * (b - a), 0.0)
    line = np.where((low < here) & (here < high) & (a > b), a, line)
    return np.where(here == low, a, np.where(here == high, b, line))


def pairs_of(inputs: Iterable[int], outputs: Iterable[int]) -> np.ndarray:
    """All pairs, int64 [pairs, 2]."""
    grid = np.array([(i, o) for i in inputs for o in outputs], dtype=np.int64)
    return grid.reshape(-1, 2)
