"""How fast rankings are, and how much memory they take.

A probe of the Hessian is timed against PyHessian and against loops as in HAP's code, paired and interleaved: all
contenders keep their graphs, and every round takes one step of each. Peak memory is measured in a process of its own
for each contender. Then whole estimators are timed, and how cost grows with probes, batch and width.

    python benchmarks/rank_speed.py --out runs/rank_speed
    python benchmarks/rank_speed.py --quick

Peers that are not installed are left out. Without matplotlib there is no figure, only its table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from ranking.networks import NETWORKS
from ranking.speed import Clock, estimators, growth, make_task, peak, probes
from ranking.speed_report import draw, estimator_table, growth_table, probe_table

QUICK = {"resnet20": 16, "encoder": 4}
"""Networks and batches of --quick."""


def main(arguments: list[str] | None = None) -> None:
    """Measures what was asked for and prints markdown."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    if options.peak:
        network, contender, batch = options.peak
        print(json.dumps(peak(make_task(NETWORKS[network], int(batch)), contender)))
        return
    clock = Clock.of(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [f"Times are {clock.words}; {options.threads} thread(s), torch {torch.__version__}.", ""]
    for table in _tables(options, clock):
        lines += table
        (options.out / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _tables(options: argparse.Namespace, clock: Clock) -> Iterator[list[str]]:
    """The tables, each as soon as it is measured."""
    wanted = QUICK if options.quick else {name: NETWORKS[name].batch for name in options.networks}
    rounds = 2 if options.quick else options.rounds
    if "probes" in options.part:
        for name, batch in wanted.items():
            times = probes(make_task(NETWORKS[name], batch), clock, rounds, _say)
            memory = {c: m for c in times if (m := _peak_elsewhere(name, c, batch, options.threads)) is not None}
            yield probe_table(f"{name}, batch {batch}", times, memory)
    if "estimators" in options.part:
        for name, batch in wanted.items():
            yield estimator_table(f"{name}, {batch} samples", *estimators(NETWORKS[name], batch, clock, min(rounds, 3)))
    if "growth" in options.part:
        points = growth(NETWORKS["resnet20"], clock, options.quick)
        drawn = draw(points, options.out / "growth.svg")
        yield growth_table(points) + ([f"Figure: {drawn}"] if drawn else [])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["probes", "estimators", "growth"]
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=5, help="steps of each contender")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/rank_speed"))
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs; not for conclusions")
    parser.add_argument("--peak", nargs=3, metavar=("NETWORK", "CONTENDER", "BATCH"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _peak_elsewhere(network: str, contender: str, batch: int, threads: int) -> float | None:
    """Peak memory of a contender in a fresh process, GiB above what network and data take."""
    command = [sys.executable, __file__, "--threads", str(threads), "--peak", network, contender, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        _say(f"{contender}: no memory figure: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return None
    return float(json.loads(done.stdout.splitlines()[-1]))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
