"""Models of timm, transformers and torchvision through capture, pruning, one healing step, export and onnxruntime.

Weights are random: this is about structure. Every model runs in a process of its own, with limits of processor time and
memory; its result is stored at once, and an interrupted run continues. The table in docs/models.md is written from what
is stored.

    pip install --no-deps -r benchmarks/requirements.txt
    python benchmarks/zoo.py                      # all models, an hour or two on one core
    python benchmarks/zoo.py --quick              # eight of them
    python benchmarks/zoo.py --only swin --again  # those whose name holds "swin", anew
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import time
import warnings
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from families.case import Case
from families.catalog import cases
from families.check import check
from families.table import document
from families.torchvision_ops import declare

ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = ("timm", "transformers", "torchvision")


def main(arguments: list[str] | None = None) -> None:
    """Checks what is not stored yet, then writes the table."""
    options = _options(arguments)
    held = declare()  # as long as models are made
    options.out.mkdir(parents=True, exist_ok=True)
    chosen = list(cases(options.only, quick=options.quick))
    for number, case in enumerate(chosen, 1):
        path = options.out / f"{case.key}.json"
        if path.exists() and not options.again:
            continue
        result = check_apart(case, options.seconds, options.memory)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{number:3}/{len(chosen)} {case.key:45} {summary(result)}", file=sys.stderr, flush=True)
    if options.table:
        paths = [options.out / f"{case.key}.json" for case in cases()]
        stored = [json.loads(path.read_text()) for path in paths if path.exists()]
        versions = ", ".join(f"{name} {version(name)}" for name in (*_LIBRARIES, "torch", "onnxruntime"))
        options.table.write_text(document(stored, versions))
    del held


def summary(result: dict[str, Any]) -> str:
    """The stages of a result in one line."""
    parts = []
    for stage, found in result["stages"].items():
        told = {"groups": "prunable", "apply": "difference", "export": "difference"}.get(stage, "")
        value = f" {found[told]:.2g}" if told in found else ""
        said = f" ({found.get('what', '')}; {found.get('why', '')})" if found["status"] in ("refused", "error") else ""
        parts.append(f"{stage} {found['status']}{value}{said}")
    return ", ".join(parts)


def check_apart(case: Case, seconds: int, memory: int) -> dict[str, Any]:
    """The result of one model from a process of its own: a fork, which has the libraries imported already."""
    begun = time.monotonic()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_check_here, args=(case, seconds, memory, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        pass  # it died: why is found out below
    finally:
        child.join()
    spent = child.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) and time.monotonic() - begun >= seconds
    what = f"no result after {seconds} seconds" if spent else f"the process ended with code {child.exitcode}"
    failed = {"status": "error", "what": what, "seconds": round(time.monotonic() - begun, 1)}
    return {"name": case.name, "library": case.library, "family": case.family, "stages": {"run": failed}}


def _check_here(case: Case, seconds: int, memory: int, sender: Connection) -> None:
    """Checks one model and sends the result; ends itself at a limit."""
    spent = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory * 2**30, memory * 2**30))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sender.send(check(case))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "zoo", help="where results are stored")
    parser.add_argument("--only", nargs="*", help="parts of names (library.model)")
    parser.add_argument("--again", action="store_true", help="check models that have a result anew")
    parser.add_argument("--quick", action="store_true", help="a few models, each of another kind")
    parser.add_argument("--seconds", type=int, default=300, help="limit for one model, of processor time")
    parser.add_argument("--memory", type=int, default=12, help="limit for one model, GiB of addresses")
    parser.add_argument("--table", type=Path, help="writes the table there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
