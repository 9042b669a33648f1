"""The same measured speed by plans on latency, on multiply-accumulates and on parameters: which keeps more accuracy?

The target is a share of the measured time of the unpruned INT8 network in onnxruntime, at one batch size. The plan on
latency gets it as its budget; the budgets of the others are searched for, so that the networks they give, measured
whole, are just as fast. Ranking, groups, width grid and healing are the same. In the end all are timed side by side.
Two more plans on latency may also drop residual blocks, and put 1×1 implants in the place of filters.

    python benchmarks/latency_plans.py examples/cifar10_resnet56.yaml --speedup 2 --epochs 1 --out runs/latency_plans
    python benchmarks/latency_plans.py examples/digits.yaml --quick

An interrupted run continues after the last network that was healed. Measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ranking import setup as setups
from ranking.cases import all_cases, rank_all, stored
from ranking.cut import statistics_batches
from ranking.healed import heal_as_asked
from ranking.setup import LOSS, Setup

from secateur.api import apply, fit_implants, plan
from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.compress.cost.stopwatch import OrtStopwatch, Share
from secateur.compress.cost.whole import Network, float_network, integer_network, measure_networks
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.compress.implants.loss import offer_implants
from secateur.compress.planner.drops import measure_blocks, temperature_of
from secateur.compress.planner.plan import Plan
from secateur.compress.sensitivity.table import Sensitivity
from secateur.errors import BudgetError
from secateur.export.targets import TARGETS
from secateur.passes.program import Program

RESOURCES = ("latency", "macs", "params", "latency, blocks may go", "latency, implants and blocks")
RANKING = "gate-ggn, augmented"
STEP = 0.94
"""Every budget that is tried is this share of the one before."""

LEAST = 0.02


def main(arguments: list[str] | None = None) -> None:
    """Plans, measures, heals and prints the table."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    setup = setups.read(options.recipe)
    folder = options.out / setup.name
    folder.mkdir(parents=True, exist_ok=True)
    table = _ranking(setup, options, folder)
    target = TARGETS[setup.recipe.target]
    watch = OrtStopwatch(target, batches=(options.batch,), threads=options.threads, progress=None)
    dense = float_network(setup.program, target)
    whole = watch.shares(dense, integer_network(setup.program, target))[options.batch]
    goal = whole.median / options.speedup
    _say(f"unpruned INT8 {_share(whole)} of dense FP32; {options.speedup:g} times as fast is {goal:.1%}")

    path = folder / "plans.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    results = {result["resource"]: result for result in known}
    for resource in options.only:
        if resource in results:
            continue
        made = _planned(setup, table, resource, goal, watch, dense)
        if made is None:
            _say(f"{resource}: no budget on it reaches {goal:.1%}")
            continue
        made.save(folder / f"{resource}.yaml")
        results[resource] = {"resource": resource, **_accuracy(setup, made, options.epochs)}
        with path.open("a") as file:
            file.write(json.dumps(results[resource]) + "\n")
        _say(str(results[resource]))

    networks = {"dense FP32": dense, "unpruned INT8": integer_network(setup.program, target)}
    for resource in results:
        smaller = apply(setup.program, Plan.load(folder / f"{resource}.yaml"))
        networks[resource] = integer_network(smaller, target)
    lines = _table(setup, results, networks, options)
    (folder / "latency_plans.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _ranking(setup: Setup, options: argparse.Namespace, folder: Path) -> Sensitivity:
    cases = [case for case in all_cases(options.samples, options.quick) if case.label == RANKING]
    rank_all(setup, cases, folder / "scores", _say)
    return stored(folder / "scores", cases)[0].table


def _planned(
    setup: Setup, table: Sensitivity, resource: str, goal: float, watch: OrtStopwatch, dense: Network
) -> Plan | None:
    """The plan with the loosest budget on a resource whose network is measured to be as fast as the goal; or None."""
    recipe, data = setup.recipe, setup.data.calibration
    beside: dict[str, Any] = {"stopwatch": watch} if resource.startswith("latency") else {}
    if "blocks" in resource:
        beside["blocks"] = measure_blocks(setup.program, data, LOSS, temperature=temperature_of(table) or 1.0)
    if "implants" in resource:
        beside["implants"] = offer_implants(setup.program, data)

    def within(share: float) -> tuple[Plan, Share] | None:
        budget = Budget(**{resource.partition(",")[0]: f"{100 * share:.3f}%"})
        try:
            made = plan(setup.program, table, target=recipe.target, budget=budget, floor=recipe.plan.floor, **beside)
        except BudgetError:
            return None
        smaller = apply(setup.program, made, allow_unchanged=True)
        measured = watch.shares(dense, integer_network(smaller, TARGETS[recipe.target]))[watch.batches[0]]
        _say(f"{resource} {share:.1%}: measured {_share(measured)}")
        return made, measured

    if "stopwatch" in beside:
        found = within(goal)
        return None if found is None else found[0]
    return _loosest(within, goal)


def _loosest(within: Callable[[float], tuple[Plan, Share] | None], goal: float) -> Plan | None:
    """The first budget, from the whole network down, whose network is fast enough.

    Smaller budgets do not always give faster networks (widths off the runtime's grid are slower), so none is skipped.
    """
    share = 1.0
    while (share := share * STEP) > LEAST:
        found = within(share)
        if found is None:
            return None
        if found[1].median <= goal:
            return found[0]
    return None


def _accuracy(setup: Setup, made: Plan, epochs: float) -> dict[str, float]:
    """What is left of the accuracy before healing, after a refit in closed form, and after training."""
    implanted = bool(made.implants())
    smaller = fit_implants(setup.program, made, setup.data.calibration) if implanted else apply(setup.program, made)
    dense, cost = count(setup.program), count(smaller)
    fresh = reestimate_batch_norm(smaller, statistics_batches(setup))
    found = {"macs": cost.macs / dense.macs, "params": cost.params / dense.params, "cut": _top1(setup, smaller)}
    found |= {"batch norm": _top1(setup, fresh), "refit": _top1(setup, heal_as_asked(setup, smaller, made, 0).program)}
    return found | {"healed": _top1(setup, heal_as_asked(setup, smaller, made, epochs).program), "epochs": epochs}


def _top1(setup: Setup, program: Program) -> float:
    return evaluate(program, setup.data.test, top1).metric


def _table(
    setup: Setup,
    results: Mapping[str, Mapping[str, float]],
    networks: Mapping[str, Network],
    options: argparse.Namespace,
) -> list[str]:
    seconds = 2.0 if options.quick else 20.0
    report = measure_networks(networks, batches=(options.batch,), threads=options.threads, seconds=seconds)
    base = report.at(options.batch, "unpruned INT8").median
    lines = [
        f"## {setup.name}",
        "",
        f"Dense {_top1(setup, setup.program):.2%}. Batch {options.batch}, {options.threads} thread(s), all networks in "
        "one run, interleaved; times as fast as the unpruned INT8 network by medians.",
        "",
        "| planned on | median ms | times as fast | MACs left | parameters | as cut | batch norm | refitted | healed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in networks:
        ms = report.at(options.batch, name).median
        if (result := results.get(name)) is not None:
            values = [f"{100 * result[key]:.2f}" for key in ("cut", "batch norm", "refit", "healed")]
            cells = f"{result['macs']:.1%} | {result['params']:.1%} | " + " | ".join(values)
        else:
            cells = " | ".join([""] * 6)
        lines.append(f"| {name} | {ms:.3f} | {base / ms:.2f} | {cells} |")
    return lines


def _share(share: Share) -> str:
    return f"{share.median:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--only", nargs="+", choices=RESOURCES, default=RESOURCES, help="only these plans")
    parser.add_argument("--speedup", type=float, default=2.0, help="over the unpruned INT8 network")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--epochs", type=float, default=1.0, help="of healing")
    parser.add_argument("--samples", type=int, default=512, help="that the ranking reads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/latency_plans"))
    parser.add_argument("--quick", action="store_true", help="a minute, to see that it runs; not for conclusions")
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.speedup = 128, min(options.speedup, 1.2)
    return options


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
