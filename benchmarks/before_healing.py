"""Accuracy before any training, by ranking method, at equal multiply-accumulates.

Fine-tuning hides a bad ranking. Every method ranks the same network and is planned for the same budget with the same
settings; then batch-norm statistics are re-estimated (no weight changes) and the whole test set is evaluated.

    python benchmarks/before_healing.py examples/cifar10_resnet20.yaml [--quick]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import secateur as sc
from secateur.compress.cost.model import count
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.heal.evaluate import cross_entropy, evaluate, top1
from secateur.inputs import example_inputs, load_data, load_model

SEEDS = 3
"""Random and Hutchinson rankings depend on the seed; the others do not."""


def main() -> None:
    """Prints one row a method and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--quick", action="store_true", help="one seed, few probes, the same test set")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    recipe = sc.load_recipe(options.recipe)
    data = load_data(recipe.data)
    args, kwargs = example_inputs(data.calibration)
    program = sc.capture(load_model(recipe.model), args, example_kwargs=kwargs)
    dense, full = evaluate(program, data.test, top1).metric, count(program)
    print(f"{options.recipe}: dense {100 * dense:.2f} %, {full.params:,} parameters, {full.macs:,} MACs")
    print("method           seed  MACs %  params %  test %  test % after batch norm  seconds to rank")
    probes = 16 if options.quick else 64
    cases = [("hap", data.calibration, "hap"), ("hap, augmented", data.train, "hap")]
    cases += [("magnitude", None, "magnitude"), ("random", None, "random")]
    for label, loader, method in cases:
        for seed in range(1 if options.quick or method == "magnitude" else SEEDS):
            started = time.perf_counter()
            table = sc.rank(program, loader, cross_entropy, method=method, samples=256, probes=probes, seed=seed)
            seconds = time.perf_counter() - started
            plan = sc.plan(
                program,
                table,
                target=recipe.target,
                budget=sc.Budget(macs="50%"),
                floor=recipe.plan.floor,
                ignore=recipe.plan.ignore,
            )
            smaller = sc.apply(program, plan)
            fresh = reestimate_batch_norm(smaller, data.train, samples=4096)
            raw, after = (evaluate(p, data.test, top1).metric for p in (smaller, fresh))
            cost = count(smaller)
            print(
                f"{label:<15}  {seed:>4}  {100 * cost.macs / full.macs:6.1f}  {100 * cost.params / full.params:8.1f}"
                f"  {100 * raw:6.2f}  {100 * after:22.2f}  {seconds:15.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
