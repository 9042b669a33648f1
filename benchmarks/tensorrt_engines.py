"""Engines of TensorRT(-RTX): sizes, build times, how much of them is INT8; times where there is a GPU.

    python benchmarks/tensorrt_engines.py                        # builds; needs no GPU with TensorRT-RTX
    python benchmarks/tensorrt_engines.py --library tensorrt     # on a machine with a GPU
    python benchmarks/tensorrt_engines.py --networks ResNet-20   # some of them

The report goes to stdout as Markdown. What needs a GPU says "not run" without one.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

import torch
from engines.build import Row, build_all
from engines.gpu import hessian_in_half, time_compiled, time_engines, time_providers
from engines.networks import NETWORKS

from secateur.export.cpu import cpu_facts
from secateur.export.tensorrt.device import find_device
from secateur.export.tensorrt.library import DEFAULT_CAPABILITIES, load_library
from secateur.export.tensorrt.settings import EngineSettings


def main(arguments: list[str] | None = None) -> None:
    """Builds, prints, and times what this machine can."""
    options = _options(arguments)
    torch.set_num_threads(1)
    library, device = load_library(options.library), find_device()
    settings = EngineSettings(batch=(1, 8, 32))
    chosen = [n for n in NETWORKS if not options.networks or any(word in n.name for word in options.networks)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        built: dict[str, list[Row]] = {}
        for network in chosen:
            print(f"building {network.name}", file=sys.stderr, flush=True)
            built[network.name] = list(build_all(network, library, settings, folder))
        where = device.name if device else f"no GPU; {cpu_facts()['cpu']}"
        print(
            f"{library.name} {library.version}, torch {torch.__version__}, Python {platform.python_version()}, {where}"
        )
        capabilities = DEFAULT_CAPABILITIES if library.ahead_of_time else (device.capability if device else "",)
        print(f"Compute capabilities: {', '.join(capabilities)}. Batch 1 to 32, tuned for 8. One thread.\n")
        _print_builds([row for rows in built.values() for row in rows])
        print("\n### On a GPU\n")
        if device is None:
            print("Not run: there is no CUDA device here.")
            return
        print("| network | form | batch | median ms | p90 | p99 | times as fast as FP32 |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for network in chosen:
            for line in time_engines(built[network.name], network, (1, 32), options.seconds):
                print(line, flush=True)
            for line in time_providers(built[network.name], network, (1, 32), options.seconds):
                print(line, flush=True)
            for line in time_compiled(network, (1, 32)):
                print(line, flush=True)
        print("\n| traces | seconds a probe | peak MiB |\n|---|---:|---:|")
        for line in hessian_in_half():
            print(line, flush=True)


def _print_builds(rows: list[Row]) -> None:
    print("| network | form | ONNX kB | engine kB | build s | CPU s | INT8 layers | file against program |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        sizes = f"{row.onnx_bytes / 1000:,.0f} | {row.plan_bytes / 1000:,.0f}"
        times = f"{row.seconds:.2f} | {row.cpu_seconds:.2f}"
        layers = f"{row.integer} of {row.total}"
        print(f"| {row.network} | {row.form} | {sizes} | {times} | {layers} | {row.error:.1e} |")
    print("\nLayers of the INT8 engines that are not INT8:\n")
    for row in rows:
        for reason, count in row.float_reasons.items():
            print(f"- {row.network}, {row.form}: {count}, because {reason}")


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=("tensorrt", "tensorrt_rtx"), default="tensorrt_rtx")
    parser.add_argument("--networks", nargs="*", default=[], help="words in the names of networks")
    parser.add_argument("--out", type=Path, help="folder for files; a temporary one if left out")
    parser.add_argument("--seconds", type=float, default=5.0, help="time measured for each network and batch size")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
