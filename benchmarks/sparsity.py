"""One-shot sparsity of ResNet-20 and MobileNetV1 (CIFAR-10) and MLPNet (MNIST): accuracy by method, solvers' speed.

All methods run in this code on the same network, gradients and weights, with the ridge chosen on held-out training
loss; published rows stand beside. ResNet-20 and MLPNet are the papers' own; MobileNetV1 is trained first, and kept
under --out. An interrupted run continues.

    python benchmarks/sparsity.py --data ../data --seeds 0 1 2 3 4 --out runs/sparsity
    python benchmarks/sparsity.py --data ../data --quick --out runs/sparsity-quick
    python benchmarks/sparsity.py --data ../data --part accuracy --network mlpnet --out runs/sparsity
    python benchmarks/sparsity.py --data ../data --part accuracy --network mobilenetv1 --samples 200 --out runs/sparsity
    python benchmarks/sparsity.py --part speed --chita PATH/TO/CHITA

`--data` holds `cifar-10-batches-bin`, `mnist` and the papers' checkpoints. `--chita` is a copy of
github.com/mazumder-lab/CHITA, which needs numba and scikit-learn; without it, only ours is timed.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import torch
from sparsity_cases.measure import BATCH_NORM_SAMPLES, CASES, SPARSITIES, run_all, stored
from sparsity_cases.report import accuracy_table, seconds_table
from sparsity_cases.setup import CHECKPOINTS, data_folder, read_setup
from sparsity_cases.speed import growth, interleaved, ours, problem_of, theirs


def main(arguments: list[str] | None = None) -> None:
    """Measures what was asked for and prints markdown."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{platform.processor() or platform.machine()}, {options.threads} thread(s), torch {torch.__version__}.",
        "",
    ]
    if "accuracy" in options.part:
        lines += _accuracy(options)
    if "speed" in options.part:
        lines += _speed(options)
    if "growth" in options.part:
        lines += _growth(options)
    (options.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _accuracy(options: argparse.Namespace) -> list[str]:
    images = 500 if options.quick else options.test_images
    setup = read_setup(options.data, options.protocol, network=options.network, test_images=images, out=options.out)
    path = options.out / ("accuracy.jsonl" if options.network == "resnet20" else f"{options.network}.jsonl")
    dense = setup.accuracy(setup.program)
    cases = [case for case in CASES if options.only is None or case.label in options.only]
    common = {"samples": 100, "holdout": 100} if options.quick else {"samples": options.samples}
    if options.quick:
        cases = [case for case in cases if case.label in {"MP", "WF", "CHITA (BSO)"}]
    seeds = options.seeds[:1] if options.quick else options.seeds
    sparsities = [0.7] if options.quick else options.sparsities
    if options.stages:
        cases = [case.in_stages(options.stages) for case in cases]
    run_all(setup, cases, sparsities, seeds, path, common, _say)
    images = len(setup.test.images)
    wanted = (setup.protocol, images)
    records = [record for record in stored(path) if (record["protocol"], record["test_images"]) == wanted]
    count = len({record["seed"] for record in records})
    where = f"{options.network}, protocol {setup.protocol}, {images} test images"
    head = f"{where}, dense {dense:.2f}, {count} seed(s), options {common}."
    return [
        head,
        "",
        *accuracy_table(records, "kept", "Top-1, batch norm as it was:", options.network),
        *accuracy_table(
            records, "reestimated", f"Top-1, batch norm re-estimated on {BATCH_NORM_SAMPLES} training images:"
        ),
        *seconds_table(records),
    ]


def _speed(options: argparse.Namespace) -> list[str]:
    lines = ["Median processor seconds of one solution, interleaved.", "", "| n | p | sparsity | solver | seconds |"]
    lines.append("|---:|---:|---:|---|---:|")
    rows, size = ([50], 5_000) if options.quick else ([100, 500, 1000], 268_336)
    for count in rows:
        problem = problem_of(count, size)
        contenders = ours(problem, 0.8)
        if options.chita:
            contenders |= theirs(problem, 0.8, options.chita)
        for name, seconds in interleaved(contenders, 1 if options.quick else 3).items():
            lines.append(f"| {count} | {size} | 80% | {name} | {seconds:.3f} |")
    return [*lines, ""]


def _growth(options: argparse.Namespace) -> list[str]:
    rows, sizes = ([20, 40], [1000]) if options.quick else ([100, 300, 1000], [30_000, 100_000, 300_000, 1_000_000])
    found = list(growth(rows, sizes))
    lines = ["| n | p | seconds | MB of gradients |", "|---:|---:|---:|---:|"]
    lines += [f"| {n} | {p} | {seconds:.2f} | {mb:.0f} |" for n, p, seconds, mb in found]
    _draw(found, options.out / "growth.svg")
    return [*lines, ""]


def _draw(found: list[tuple[int, int, float, float]], path: Path) -> None:
    """A figure, if matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for count in dict.fromkeys(n for n, *_ in found):
        sizes = [p for n, p, *_ in found if n == count]
        left.loglog(sizes, [s for n, _, s, _ in found if n == count], marker="o", label=f"n = {count}")
        right.loglog(sizes, [mb for n, _, _, mb in found if n == count], marker="o", label=f"n = {count}")
    left.set(xlabel="weights p", ylabel="processor seconds")
    right.set(xlabel="weights p", ylabel="MB of gradients")
    left.legend()
    figure.savefig(path)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["accuracy", "speed", "growth"]
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--data", type=Path, default=data_folder())
    parser.add_argument("--network", choices=list(CHECKPOINTS), default="resnet20")
    parser.add_argument("--protocol", choices=["papers", "own"], default="papers", help="of resnet20")
    parser.add_argument("--only", nargs="+", help="labels of contenders")
    parser.add_argument("--sparsities", nargs="+", type=float, default=list(SPARSITIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--test-images", type=int, help="only so many of the 10000")
    parser.add_argument("--stages", type=int, help="of methods that have several; their defaults if not given")
    parser.add_argument("--chita", type=Path, help="a copy of the public code")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/sparsity"))
    parser.add_argument("--quick", action="store_true", help="minutes, to see that it runs; not for conclusions")
    return parser.parse_args(arguments)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
