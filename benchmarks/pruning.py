"""HAP's comparison on CIFAR-10: what is left of the accuracy at equal budgets, before and after healing, by ranking.

Budgets remove 30, 50 and 70 % of the parameters or of the multiply-accumulates. Every network is cut once by every
ranking with the planner and settings of its recipe; evaluated as cut, and after batch norm was re-estimated on the same
images. A subset is then healed: trained for the same few epochs with the same settings, or refitted in closed form.

    python benchmarks/pruning.py examples/cifar10_resnet20.yaml --heal macs --epochs 2 --out runs/pruning
    python benchmarks/pruning.py examples/cifar10_resnet20.yaml --heal macs --epochs 0 --out runs/pruning
    python benchmarks/pruning.py examples/digits.yaml --quick

An interrupted run continues. The rankings are those of rank_quality, whose scores are used if --out is the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from ranking import setup as setups
from ranking.cases import all_cases, rank_all
from ranking.cases import stored as stored_rankings
from ranking.cut import RESOURCES, cut_all
from ranking.cut import stored as stored_cuts
from ranking.healed import heal_all
from ranking.healed import stored as stored_healed
from ranking.pruning_report import tables

from secateur.compress.heal.evaluate import evaluate, top1

LABELS = (
    "random",
    "magnitude",
    "Torch-Pruning Taylor, as released",
    "Torch-Pruning Hessian, as released",
    "hap, 3 probes",
    "hap, 30 probes",
    "taylor",
    "gate-ggn, temperature 1",
    "gate-ggn",
    "gate-ggn, augmented",
)
"""The rankings that are compared; HAP's own code takes three probes unless told otherwise."""


def main(arguments: list[str] | None = None) -> None:
    """Cuts, heals, and prints the tables."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    setup = setups.read(options.recipe)
    folder = options.out / setup.name
    folder.mkdir(parents=True, exist_ok=True)
    cases = [case for case in all_cases(options.samples, options.quick) if case.label in options.labels]
    rank_all(setup, cases, folder / "scores", _say)
    rankings = [r for r in stored_rankings(folder / "scores", cases) if r.label in options.labels]
    rankings += [r.implanted(options.implants) for r in rankings if options.implants and r.label in options.implanted]
    resources = list(RESOURCES)
    cuts, healed = folder / "pruning.jsonl", folder / "healed.jsonl"
    cut_all(
        setup,
        rankings,
        options.removed,
        options.test_images,
        cuts,
        _say,
        resources=resources,
        streams=("kept",),
    )
    first = [ranking for ranking in rankings if ranking.seed == 0]
    heal_all(setup, first, options.heal_removed or options.removed, options.heal, options.epochs, healed, _say)
    dense = evaluate(setup.program, setup.data.test, top1).metric
    lines = [f"## {setup.name}", "", *tables(stored_cuts(cuts), stored_healed(healed), dense)]
    (folder / "pruning.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/pruning"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--labels", nargs="+", default=list(LABELS), help="rankings, by their labels in rank_quality")
    parser.add_argument("--samples", type=int, default=512, help="read by every estimator")
    parser.add_argument("--removed", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="shares of the resource")
    parser.add_argument("--test-images", type=int, default=10_000, help="for accuracy before healing")
    parser.add_argument("--heal", nargs="*", choices=list(RESOURCES), default=[], help="also train at these budgets")
    parser.add_argument("--heal-removed", nargs="+", type=float, help="only at these shares; those of --removed")
    parser.add_argument("--epochs", type=float, default=2.0, help="of training; 0 refits in closed form instead")
    parser.add_argument("--implants", type=float, default=0.0, help="share of the pruned units that get an implant")
    parser.add_argument(
        "--implanted", nargs="+", default=["gate-ggn, augmented"], help="rankings to implant by as well"
    )
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs; not for conclusions")
    options = parser.parse_args(arguments)
    if options.quick:
        options.labels, options.samples = ["random", "magnitude", "gate-ggn"], 128
        options.removed = options.removed[:1]
        options.heal, options.epochs = ["macs"], min(options.epochs, 1.0)
    return options


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
