"""HAP's and EHAP's rows on CIFAR-10: their networks trained here, cut by their methods and by others, and healed.

    python benchmarks/published.py preresnet29 --data ../data/cifar-10-batches-bin --out runs/published
    python benchmarks/published.py wrn28_8 --data ../data/cifar-10-batches-bin --out runs/published
    python benchmarks/published.py preresnet29 --data ../data/cifar-10-batches-bin --quick

Hours on a GPU, days without one; `--quick` sees within minutes that it runs. Every ranking plans for the same share of
the parameters by HAP's one threshold, with implants for HAP's share of the cut units or without; then the same healing.
An interrupted run continues: training from its last epoch, rows from the last that was finished.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.api import apply, capture, fit_implants, plan, rank
from secateur.compress.budget import Budget
from secateur.compress.cost.model import count
from secateur.compress.heal.evaluate import cross_entropy, evaluate, top1
from secateur.compress.heal.heal import heal
from secateur.compress.heal.settings import HealSettings, TrainSettings
from secateur.compress.heal.start import BATCH_NORM
from secateur.compress.heal.train import fit
from secateur.compress.implants.select import plan_within
from secateur.compress.sensitivity.table import Sensitivity
from secateur.examples.cifar10 import loaders
from secateur.examples.cifar_preresnet import preresnet29
from secateur.examples.cifar_resnet import resnet32
from secateur.examples.tensor_loader import Loaders, TensorLoader
from secateur.examples.wide_resnet import wide_resnet
from secateur.passes.program import Program


@dataclass(frozen=True)
class Network:
    """A network of the papers.

    Attributes:
        make: Builds it.
        removed: Share of the parameters that its row removes.
        published: What the paper says of it.
    """

    make: Callable[[], nn.Module]
    removed: float
    published: str


NETWORKS = {
    "preresnet29": Network(preresnet29, 0.7, "HAP: 94.3 %, less than 0.1 lost, over 70 % of the parameters removed"),
    "wrn28_8": Network(
        lambda: wide_resnet(widen=8), 0.9, "EHAP: about 10 % of the parameters left; accuracy not known"
    ),
    "resnet32": Network(resnet32, 0.9, "EHAP: about 10 % of the parameters left; accuracy not known"),
}

IMPLANTED = 0.1
"""HAP's share of the cut units, the most sensitive of them, that get an implant."""


def main(arguments: list[str] | None = None) -> None:
    """Trains, cuts, heals, and prints the table."""
    options = _options(arguments)
    network, device = NETWORKS[options.network], torch.device(options.device)
    folder = options.out / options.network
    folder.mkdir(parents=True, exist_ok=True)
    data = loaders(options.data)
    dense = _trained(network, data, folder, options, device)
    reached = evaluate(dense, _first(data.test, options.images), top1).metric
    path = folder / "rows.jsonl"
    done = {(row["ranking"], row["implants"]) for row in _stored(path)}
    for label, method, given in _rankings(options, device):
        missing = [implants for implants in (0.0, IMPLANTED) if (label, implants) not in done]
        if not missing:
            continue
        began = time.perf_counter()
        table = rank(dense, data.calibration, method=method, **given)
        about = {"ranking": label, "rank_seconds": time.perf_counter() - began}
        for implants in missing:
            state = folder / f"{label}-{implants}"
            row = {**about, "implants": implants, **_row(dense, data, table, implants, network.removed, state, options)}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    lines = [
        f"{options.network}, {network.removed:.0%} of the parameters removed, dense {reached:.2%}, on {_name(device)}.",
        f"*Published: {network.published}.*",
        "",
        "| ranking | implants | parameters left | MACs left | as cut | batch norm | healed | ranking, s | healing, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in _stored(path):
        shares = (
            f"{row['params']:.1%} | {row['macs']:.1%} | {row['raw']:.2%} | {row['fresh']:.2%} | {row['healed']:.2%}"
        )
        times = f"{row['rank_seconds']:.0f} | {row['heal_seconds']:.0f}"
        lines.append(f"| {row['ranking']} | {row['implants']:.0%} | {shares} | {times} |")
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def _trained(network: Network, data: Loaders, folder: Path, options: Any, device: torch.device) -> Program:
    """The dense network: SGD with Nesterov momentum from 0.1, a tenth of it from half and from three quarters on."""
    if (folder / "dense").exists():
        program = Program.load(folder / "dense")
        program.module().to(device)
        return program
    torch.manual_seed(0)
    images, _ = next(iter(data.calibration))
    program = capture(network.make().to(device).eval(), (images.to(device),))
    settings = TrainSettings(
        epochs=options.epochs,
        max_steps=options.steps,
        lr=0.1,
        weight_decay=2e-4,
        schedule="step",
        milestones=(0.5, 0.75),
        distill_weight=0.0,
    )
    done = fit(program, data.train, cross_entropy, settings, state_dir=folder / "state", progress=_progress("training"))
    done.program.save(folder / "dense")
    return done.program


def _rankings(options: Any, device: torch.device) -> Sequence[tuple[str, str, dict[str, Any]]]:
    half = {"probes": options.probes, "precision": "fp16" if device.type == "cuda" else "bf16"}
    return (
        ("hap", "hap", {"probes": options.probes, "samples": options.samples}),
        (f"ehap {half['precision']}", "ehap", {**half, "samples": options.samples}),
        ("gate-ggn", "gate-ggn", {"samples": options.samples}),
        ("magnitude", "magnitude", {}),
        ("random", "random", {}),
    )


def _row(
    dense: Program, data: Loaders, table: Sensitivity, implants: float, removed: float, state: Path, options: Any
) -> dict[str, float]:
    budget = Budget(params=f"{100 * (1 - removed):g}%")

    def within(budget: Budget) -> Any:
        return plan(dense, table, budget=budget, by="sensitivity", floor=0.05)

    made = plan_within(within, dense, table, budget, ni_ratio=implants) if implants else within(budget)
    smaller = fit_implants(dense, made, data.calibration) if implants else apply(dense, made)
    began = time.perf_counter()
    healed = heal(
        smaller,
        data.train,
        teacher=dense,
        settings=HealSettings(epochs=options.heal_epochs, max_steps=options.steps, lr=0.02, weight_decay=4e-4),
        validation=_first(data.validation, options.images),
        samples=options.samples,
        state_dir=state,
        progress=_progress(f"{table.method}, healing"),
    )
    heal_seconds = time.perf_counter() - began
    cost, whole = count(smaller), count(dense)
    stages = {"raw": smaller, "fresh": healed.starts[BATCH_NORM], "healed": healed.program}
    test = _first(data.test, options.images)
    return {
        "params": cost.params / whole.params,
        "macs": cost.macs / whole.macs,
        **{name: evaluate(program, test, top1).metric for name, program in stages.items()},
        "heal_seconds": heal_seconds,
    }


def _first(loader: TensorLoader, images: int | None) -> Any:
    """The loader, or its first batches."""
    return loader if images is None else list(islice(loader, -(-images // loader.batch_size)))


def _progress(what: str) -> Callable[..., None]:
    def told(done: int, total: int, **_: Any) -> None:
        if done == total or done % 500 == 0:
            print(f"{what}: {done} of {total} steps", file=sys.stderr, flush=True)

    return told


def _stored(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--data", type=Path, required=True, help="the folder cifar-10-batches-bin")
    parser.add_argument("--out", type=Path, default=Path("runs/published"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--epochs", type=float, default=200, help="of training the dense network")
    parser.add_argument("--heal-epochs", type=float, default=120)
    parser.add_argument("--samples", type=int, default=1024, help="read by every estimator")
    parser.add_argument("--probes", type=int, default=64, help="of hap and ehap")
    parser.add_argument("--steps", type=int, help="no training takes more")
    parser.add_argument("--images", type=int, help="of the test and the validation images, only so many")
    parser.add_argument("--quick", action="store_true", help="minutes, to see that it runs; not for conclusions")
    options = parser.parse_args(arguments)
    if options.quick:
        options.samples, options.probes, options.steps, options.images = 64, 2, 4, 256
    return options


if __name__ == "__main__":
    main()
