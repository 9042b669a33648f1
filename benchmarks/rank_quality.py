"""How good rankings are: against true removals, and by what is left of the accuracy before any training.

Fine-tuning hides a bad ranking. So every unit is really removed, one at a time, and every estimator is compared with
the rise of the loss that this causes; then every ranking is planned for equal budgets with equal settings, and the
network is cut, its batch norm re-estimated, and evaluated. No weight is trained.

    python benchmarks/rank_quality.py examples/cifar10_resnet20.yaml --out runs/rank_quality
    python benchmarks/rank_quality.py examples/digits.yaml --quick

Everything is stored under --out as it is found, and an interrupted run continues. Parts: `truth` (minutes to hours),
`rank`, `cut`, and `report`, which prints markdown tables and writes them there too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from ranking import setup as setups
from ranking.cases import all_cases, oracle, rank_all, stored
from ranking.cut import cut_all
from ranking.cut import stored as stored_cuts
from ranking.report import agreement_table, cut_tables
from ranking.truth import measure, merge

from secateur.compress.heal.evaluate import evaluate, top1

PARTS = ("truth", "rank", "cut", "report")


def main(arguments: list[str] | None = None) -> None:
    """Runs the parts that were asked for."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    setup = setups.read(options.recipe)
    folder = options.out / setup.name
    folder.mkdir(parents=True, exist_ok=True)
    cases = all_cases(128 if options.quick else options.samples, options.quick)

    def wanted(label: str) -> bool:
        return any(part in label for part in options.only)

    paths = [folder / f"truth.{turn}.npz" for turn in range(options.turns)]
    if "truth" in options.part:
        for turn, path in enumerate(paths):
            images, labels = setups.truth_samples(setup, options.removal_samples, turn)
            measure(setup.program, images, labels, path, subset=options.units, progress=_say)
    if "rank" in options.part:
        chosen = [case for case in cases if wanted(case.label) and (options.long or not case.long)]
        rank_all(setup, chosen, folder / "scores", _say)
    truth, about = merge(paths) if paths[0].exists() else (None, {})
    rankings = stored(folder / "scores", cases)
    if truth is not None and truth.complete.all():
        rankings.append(oracle(setup, truth, "train"))
    if "cut" in options.part:
        chosen = [ranking for ranking in rankings if wanted(ranking.label)]
        cut_all(setup, chosen, options.removed, options.test_images, folder / "cuts.jsonl", _say)
    if "report" in options.part:
        images, labels = setups.first_samples(setup.data.test, options.test_images)
        test = list(zip(images.split(128), labels.split(128), strict=True))
        dense = evaluate(setup.program, test, top1).metric
        lines = [f"## {setup.name}", ""]
        if truth is not None:
            lines += agreement_table(truth, about, rankings)
        lines += cut_tables(stored_cuts(folder / "cuts.jsonl"), dense)
        (folder / "report.md").write_text("\n".join(lines) + "\n")
        print("\n".join(lines))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/rank_quality"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=512, help="read by every estimator")
    parser.add_argument("--removal-samples", type=int, default=1024, help="that removals are measured on, in a turn")
    parser.add_argument("--turns", type=int, default=4, help="each with other samples: more lessen the noise")
    parser.add_argument("--units", type=int, help="remove only so many units, drawn at random; all if not given")
    parser.add_argument("--removed", nargs="+", type=float, default=[0.3, 0.5, 0.7], help="shares of the MACs")
    parser.add_argument("--test-images", type=int, default=10_000, help="for accuracy after the cut")
    parser.add_argument("--only", nargs="+", default=[""], help="only rankings whose label contains one of these")
    parser.add_argument("--long", action="store_true", help="also what takes long: 300 probes, layer-wise probes")
    parser.add_argument("--quick", action="store_true", help="a few minutes, to see that it runs; not for conclusions")
    options = parser.parse_args(arguments)
    if options.quick:
        options.units, options.turns = min(options.units or 24, 24), 1
        options.removal_samples, options.test_images = min(options.removal_samples, 256), min(options.test_images, 2000)
    return options


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
