"""Runs methods at sparsities and seeds, one line of JSON each; what is there is not run again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from secateur.compress.chita.data_matrix import DataMatrix
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.methods import METHODS
from secateur.compress.sparsify import gradients_of, sparsify
from secateur.compress.sparsify_settings import SparsifySettings

from .setup import Setup

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)

BATCH_NORM_SAMPLES = 2048
"""Training images for the second column."""


@dataclass(frozen=True)
class Case:
    """A contender.

    Attributes:
        label: Of its row.
        options: Of `SparsifySettings`.
    """

    label: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stages(self) -> int:
        """How many."""
        return int(self.options.get("stages") or METHODS[self.options["method"]].stages)

    def in_stages(self, stages: int) -> Case:
        """The same in so many stages, and called so; a contender of one stage stays as it is."""
        if self.stages == 1:
            return self
        return Case(f"{self.label}, {stages} stage{'s' * (stages > 1)}", {**self.options, "stages": stages})


CASES = (
    Case("MP", {"method": "magnitude"}),
    Case("WF", {"method": "woodfisher"}),
    Case("CBS", {"method": "cbs"}),
    Case("M-FAC", {"method": "m-fac"}),
    Case("CHITA (BSO)", {"method": "chita-bso"}),
    Case("CHITA (CD)", {"method": "chita-cd"}),
    Case("CHITA (IHT, active set)", {"method": "chita"}),
    Case("CHITA++, no gradient", {"method": "chita++", "first_order": 0.0}),
    Case("CHITA++ (ours)", {"method": "chita++"}),
    Case("CHITA++ on outputs (ours)", {"method": "chita++", "model": "outputs"}),
    Case("MP, layers refitted", {"method": "magnitude", "refit": "layers"}),
    Case("MP in 4 stages, layers refitted", {"method": "magnitude", "refit": "layers", "stages": 4}),
    Case("CHITA (BSO), layers refitted", {"method": "chita-bso", "refit": "layers"}),
    Case("CHITA++ in 4 stages, layers refitted", {"method": "chita++", "refit": "layers", "stages": 4}),
    Case("CHITA++ (ours), batch norm in every stage", {"method": "chita++", "batch_norm": "stages"}),
)


def run_all(
    setup: Setup,
    cases: Sequence[Case],
    sparsities: Sequence[float],
    seeds: Sequence[int],
    path: Path,
    common: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Runs what `path` does not hold yet.

    Args:
        setup: Network and data.
        cases: Contenders.
        sparsities: Shares of zeros.
        seeds: Of the order and augmentation of the training images, and of random choices.
        path: JSON lines.
        common: Options of all contenders (`samples`, …).
        say: Told every result.
    """
    images = len(setup.test.images)
    done = {(r["label"], r["sparsity"], r["seed"], r["protocol"], r["test_images"]) for r in stored(path)}
    for seed in seeds:
        shared: DataMatrix | None = None
        for case in cases:
            for sparsity in sparsities:
                if (case.label, sparsity, seed, setup.protocol, images) in done:
                    continue
                shares = case.stages == 1 and METHODS[case.options["method"]].needs_data
                if shares and shared is None:
                    settings = SparsifySettings(**common, ignore=setup.ignore)
                    shared = gradients_of(setup.program, setup.loader(seed), settings=settings)
                record = _run(setup, case, sparsity, seed, common, shared if shares else None)
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                fresh = "" if record["reestimated"] is None else f", BN {record['reestimated']:.2f}"
                say(f"{case.label} {sparsity} seed {seed}: {record['kept']:.2f}{fresh}")


def stored(path: Path) -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _run(
    setup: Setup, case: Case, sparsity: float, seed: int, common: Mapping[str, Any], shared: DataMatrix | None
) -> dict[str, Any]:
    options = {
        "batch_norm": "kept",
        **common,
        **case.options,
        "sparsity": sparsity,
        "seed": seed,
        "ignore": setup.ignore,
    }
    begun = time.perf_counter(), time.process_time()
    result = sparsify(setup.program, setup.loader(seed), settings=SparsifySettings(**options), gradients=shared)
    seconds, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
    healed = None
    if any(isinstance(module, nn.BatchNorm2d) for module in result.program.module().modules()):
        healed = reestimate_batch_norm(result.program, setup.loader(seed), samples=BATCH_NORM_SAMPLES)
    return {
        "label": case.label,
        "sparsity": sparsity,
        "seed": seed,
        "protocol": setup.protocol,
        "test_images": len(setup.test.images),
        "kept": setup.accuracy(result.program),
        "reestimated": None if healed is None else setup.accuracy(healed),
        "zeros": result.facts["zeros"] / result.facts["weights"],
        "seconds": seconds,
        "cpu_seconds": cpu,
        "shared_gradients": shared is not None,
        "ridges": [stage.get("ridge") for stage in result.facts["stages"]],
        "first_orders": [stage.get("first_order") for stage in result.facts["stages"]],
        "options": dict(common),
    }


def means(records: Sequence[Mapping[str, Any]], key: str) -> Iterator[tuple[str, float, float, float, int]]:
    """Label, sparsity, mean, standard deviation and count over seeds."""
    groups: dict[tuple[str, float], list[float]] = {}
    for record in records:
        if record[key] is None:
            continue
        groups.setdefault((record["label"], record["sparsity"]), []).append(record[key])
    for (label, sparsity), values in groups.items():
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)) ** 0.5
        yield label, sparsity, mean, spread, len(values)
