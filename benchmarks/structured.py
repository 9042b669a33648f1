"""How much accuracy choosing units jointly leaves, without any training, against one-shot rankings.

Every method chooses units for the same budgets with the same settings (target, floor, groups that stay whole: those of
the recipe). The network is cut, repaired in closed form, and evaluated. No weight is trained.

    python benchmarks/structured.py examples/cifar10_resnet20.yaml --out runs/structured
    python benchmarks/structured.py examples/digits.yaml --quick

Everything is stored under --out as it is found, and an interrupted run continues. Seconds are processor seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
from ranking import setup as setups
from structured_cases.measure import Images, Result, append, measure, stored
from structured_cases.selections import JOINT, LAYERWISE, Task, scores_of

from secateur.compress.heal.evaluate import evaluate, top1
from secateur.compress.sensitivity.table import Sensitivity

METHODS = (*list(JOINT)[:2], "magnitude", "gate-ggn", LAYERWISE, "taylor", "random", "hap", *list(JOINT)[2:])
"""In the order in which they are run: what matters most first."""


def main(arguments: list[str] | None = None) -> None:
    """Runs what is missing and prints the tables."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    setup = setups.read(options.recipe)
    folder = options.out / setup.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    test = _images(setup.data.test, options.test_images)
    check = _images(setup.data.validation or setup.data.calibration, options.validation_images)
    task = Task(setup, options.samples, options.probes, options.stages)
    done = {(result.method, result.removed, result.images) for result in stored(path)}
    images = sum(len(labels) for _, labels in test)
    for removed in options.removed:
        for method in METHODS:
            if (method, removed, images) in done or (options.only and method not in options.only):
                continue
            began = time.process_time()
            if method in JOINT:
                plan, earlier = JOINT[method](task, removed), 0.0
            else:
                table, earlier = _scores(task, method, folder)
                plan = task.plan(table, removed)
            seconds = time.process_time() - began if method in JOINT else earlier
            plain = method == LAYERWISE or method == next(iter(JOINT))
            result = measure(setup, method, removed, plan, seconds, test, check, plain=plain)
            append(path, result)
            print(result, file=sys.stderr, flush=True)
    lines = _tables(setup.name, stored(path), evaluate(setup.program, test, top1).metric)
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _scores(task: Task, method: str, folder: Path) -> tuple[Sensitivity, float]:
    """Scores of a one-shot method, and what they took; from the folder if they are there."""
    path = folder / f"{method}.safetensors"
    took = folder / f"{method}.seconds"
    if not path.exists():
        began = time.process_time()
        found = scores_of(task, method)
        took.write_text(f"{time.process_time() - began:.1f}")
        found.save(path)
    return Sensitivity.load(path), float(took.read_text())


def _images(loader: object, count: int) -> Images:
    images, labels = setups.first_samples(loader, count)  # type: ignore[arg-type]
    return list(zip(images.split(128), labels.split(128), strict=True))


def _tables(name: str, results: list[Result], dense: float) -> list[str]:
    """One table a share: accuracy in per cent."""
    lines = [f"## {name}", ""]
    for images in sorted({r.images for r in results}):
        for removed in sorted({r.removed for r in results if r.images == images}):
            lines += [
                f"{removed:.0%} of MACs removed; {images} test images, dense {dense:.2%}, no training.",
                "",
                "| units chosen by | MACs left | parameters left | batch norm | layers alone | sums and ReLUs "
                "| seconds: plan | seconds: refit |",
                "|---|---|---|---|---|---|---|---|",
            ]
            rows = [r for r in results if r.images == images and r.removed == removed]
            for r in sorted(rows, key=lambda r: METHODS.index(r.method)):
                alone = "" if r.plain is None else f"{100 * r.plain:.2f}"
                lines.append(
                    f"| {r.method} | {r.macs:.1%} | {r.params:.1%} | {100 * r.batch_norm:.2f} | {alone} "
                    f"| {100 * r.ridge:.2f} | {r.plan_seconds:g} | {r.ridge_seconds:g} |"
                )
            lines.append("")
    return lines


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/structured"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=512, help="calibration images of every method")
    parser.add_argument("--probes", type=int, default=16, help="of hap, which reads 256 images")
    parser.add_argument("--stages", type=int, default=4, help="of structured-chita")
    parser.add_argument("--removed", nargs="+", type=float, default=[0.5, 0.3, 0.7], help="shares of the MACs")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--validation-images", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=METHODS, help="only these")
    parser.add_argument("--quick", action="store_true", help="minutes, to see that it runs; not for conclusions")
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.probes, options.stages = 128, 2, 2
        options.removed, options.test_images, options.validation_images = options.removed[:1], 1000, 256
    return options


if __name__ == "__main__":
    main()
