"""The rankings that are compared, and the store of their scores."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from secateur.api import rank
from secateur.compress.sensitivity.rank import METHODS
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.errors import UserError

from . import torch_pruning_scores
from .removed import removal
from .setup import LOSS, Setup, first_samples
from .truth import Truth, prunable


@dataclass(frozen=True)
class Case:
    """One way to rank.

    Attributes:
        label: How it is shown.
        method: An estimator of ours, `removal`, or `torch-pruning taylor` or `torch-pruning hessian`.
        options: Of the estimator.
        seeds: How many seeds are run; more than one where the result depends on them.
        data: `calibration` (plain training images), `train` (augmented ones).
        long: Only run on request.
    """

    label: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1
    data: str = "calibration"
    long: bool = False


def all_cases(samples: int, quick: bool) -> list[Case]:
    """Every case; those whose method or package is missing too.

    Args:
        samples: How many every estimator reads.
        quick: Leaves out what takes long, and runs one seed.
    """
    seeds = 1 if quick else 3
    few = {"samples": samples}
    cases = [Case("random", "random", seeds=seeds), Case("magnitude", "magnitude"), Case("bn-scale", "bn-scale")]
    for data, suffix in (("calibration", ""), ("train", ", augmented")):
        cases += [Case(f"{name}{suffix}", name, few, data=data) for name in ("taylor", "oba", "sosp", "obd")]
        cases += [Case(f"{name}{suffix}", name, few, data=data) for name in ("gate-fisher", "gate-ggn", "ggn")]
        cases.append(Case(f"gate-ggn, temperature 1{suffix}", "gate-ggn", {**few, "temperature": 1.0}, data=data))
        slope = {**few, "first_order": True}
        cases.append(Case(f"gate-ggn with the gradient{suffix}", "gate-ggn", slope, data=data))
        cases.append(Case(f"gate-ggn, 1 draw{suffix}", "gate-ggn", {**few, "draws": 1}, seeds, data))
    # One draw costs a fifth of the exact matrix of ten classes: on as many more samples it costs the same.
    more = {"samples": 5 * samples}
    label = f"{5 * samples} augmented samples"
    cases.append(Case(f"gate-ggn, 1 draw, {label}", "gate-ggn", {**more, "draws": 1}, seeds, "train"))
    cases += [Case(f"{name}, {label}", name, more, data="train") for name in ("taylor", "gate-fisher")]
    for probes in (2, 3, 30):
        label = f"hap, {probes} probes"
        cases.append(Case(label, "hap", {**few, "probes": probes}, seeds))
        cases.append(Case(f"ehap BF16, {probes} probes", "ehap", {**few, "probes": probes, "precision": "bf16"}, seeds))
    cases.append(
        Case("ehap as published", "ehap", {**few, "probes": 30, "published": True, "precision": "bf16"}, seeds)
    )
    cases.append(Case("hap, 30 layer-wise probes", "hap", {**few, "probes": 30, "layerwise": True}, 1, long=True))
    cases.append(Case("hap, 30 probes, augmented", "hap", {**few, "probes": 30}, 1, "train"))
    cases.append(Case("hap, 300 probes", "hap", {**few, "probes": 300}, 1, long=True))
    for temperature, said in ((None, "loss"), (4.0, "divergence at temperature 4")):
        label = f"removal of each unit on {samples // 2} augmented samples, {said}"
        options = {"samples": samples // 2, "temperature": temperature}
        cases.append(Case(label, "removal", options, 1, "train", long=True))
    cases += [
        Case("Torch-Pruning Taylor, as released", "torch-pruning taylor", few),
        Case("Torch-Pruning Taylor, not normalised", "torch-pruning taylor", {**few, "normalizer": None}),
    ]
    for mended in (False, True):
        state = "accumulation mended" if mended else "as released"
        options = {**few, "mended": mended}
        cases.append(Case(f"Torch-Pruning Hessian, {state}", "torch-pruning hessian", options))
        options = {**options, "normalizer": None}
        cases.append(Case(f"Torch-Pruning Hessian, {state}, not normalised", "torch-pruning hessian", options))
    return [case for case in cases if not (quick and case.long)]


@dataclass(frozen=True)
class Ranking:
    """Scores of a case.

    Attributes:
        label: Of the case.
        seed: The seed.
        table: The scores.
        seconds: Processor seconds that it took, which the load of the machine barely changes.
        implants: Share of the units to be pruned that get an implant, the most sensitive of them (HAP).
    """

    label: str
    seed: int
    table: Sensitivity
    seconds: float
    implants: float = 0.0

    def implanted(self, share: float) -> Ranking:
        """The same with implants, and called so."""
        return replace(self, label=f"{self.label}, implants for {share:.0%}", implants=share)

    def vector(self, truth: Truth) -> np.ndarray:
        """The scores in the order of the truth, [units]; zero for groups without scores."""
        parts = []
        for name, width in zip(truth.names, truth.widths, strict=True):
            scores = self.table.groups.get(name)
            parts.append(np.zeros(width) if scores is None else scores.delta_loss)
        return np.concatenate(parts)


def rank_all(
    setup: Setup,
    cases: list[Case],
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Runs the cases that `folder` does not hold yet; says which cannot be run."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for seed in range(case.seeds):
            path = folder / f"{_slug(case.label)}.{seed}.safetensors"
            if path.exists():
                continue
            try:
                began = time.process_time()
                table = _run(setup, case, seed)
                seconds = time.process_time() - began
            except (UserError, NotImplementedError) as error:
                say(f"{case.label}: skipped: {error}")
                break
            about = {"label": case.label, "seed": seed, "seconds": seconds}
            path.with_suffix(".json").write_text(json.dumps(about))
            table.save(path)
            say(f"{case.label}, seed {seed}: {seconds:.1f} s")


def stored(folder: Path, cases: list[Case]) -> list[Ranking]:
    """What `rank_all` left, in the order of the cases."""
    order = {case.label: number for number, case in enumerate(cases)}
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        about = json.loads(path.with_suffix(".json").read_text())
        found.append(Ranking(about["label"], about["seed"], Sensitivity.load(path), about["seconds"]))
    return sorted(found, key=lambda r: (order.get(r.label, len(order)), r.seed))


def oracle(setup: Setup, truth: Truth, part: str) -> Ranking:
    """The truth as a ranking: what one-at-a-time scores can give at best."""
    rise, start, groups = truth.rise("re-estimated", part), 0, {}
    for group in prunable(setup.program):
        groups[group.name] = Scores(rise[start : start + group.width], np.zeros(group.width))
        start += group.width
    return Ranking("true rise on training images", 0, Sensitivity("truth", "loss", groups), float("nan"))


def _run(setup: Setup, case: Case, seed: int) -> Sensitivity:
    loader = getattr(setup.data, case.data)
    if case.method.startswith("torch-pruning"):
        if not torch_pruning_scores.available():
            raise UserError("torch-pruning is not installed", hint="pip install -r benchmarks/requirements.txt")
        options = dict(case.options)
        images, labels = first_samples(loader, options.pop("samples"))
        score = {"taylor": torch_pruning_scores.taylor, "hessian": torch_pruning_scores.hessian}
        return score[case.method.split()[1]](setup.program, images, labels, **options)
    if case.method == "removal":
        options = dict(case.options)
        return removal(setup.program, *first_samples(loader, options.pop("samples")), **options)
    method = next((name for name in (case.method, case.method.replace("_", "-")) if name in METHODS), case.method)
    return rank(setup.program, loader, LOSS, method=method, seed=seed, **case.options)


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
