"""The commands that are about engines and devices; a part of `cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError

Batches = Annotated[str, typer.Option("--batch", help="Batch sizes.", metavar="N[,N…]")]


def add_commands(app: typer.Typer) -> None:
    """Adds `bench` and `engine` to the command line."""
    app.command()(bench)
    app.command()(engine)


def bench(
    source: Annotated[list[Path], typer.Argument(help="ONNX files, engines, or an artifact.", show_default=False)],
    batch: Batches = "1,32",
    seconds: Annotated[float, typer.Option(help="Time spent on each batch size.", min=0.01)] = 3.0,
    threads: Annotated[int, typer.Option(help="Threads of onnxruntime.", min=1, max=1024)] = 1,
    provider: Annotated[str, typer.Option(help="Of onnxruntime: cpu, cuda, tensorrt or tensorrt-rtx.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
) -> None:
    """Measure latency and throughput of models and engines, paired and interleaved."""
    from .bench import bench as measure

    sizes = _numbers(batch, "--batch")
    measure(source, batches=sizes, seconds=seconds, threads=threads, provider=provider, as_json=json)


def engine(
    source: Annotated[Path, typer.Argument(help="An artifact for TensorRT.", show_default=False)],
    batch: Annotated[
        str | None, typer.Option(help="Smallest, best and largest batch size.", metavar="MIN,BEST,MAX")
    ] = None,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            help="Shapes of an input with dynamic axes; several times for several.", metavar="INPUT=MIN,BEST,MAX"
        ),
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option(help="Compute capability, such as 8.9; several times for several.")
    ] = None,
    workspace: Annotated[int | None, typer.Option(help="Scratch memory of kernels, in MiB.", min=1)] = None,
    sparse: Annotated[bool | None, typer.Option("--sparse/--dense", help="Allow 2:4 sparse kernels.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File of measured kernels; TensorRT only.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Build the engines of an artifact on this machine, unless they are there already."""
    from .engine import engine as build

    options: dict[str, Any] = {
        "batch": _numbers(batch, "--batch") if batch else None,
        "profiles": dict(_profile(text) for text in profile) if profile else None,
        "capabilities": capability or None,
        "workspace_mib": workspace,
        "sparse": sparse,
    }
    given = {key: value for key, value in options.items() if value is not None}
    build(source, given, timing_cache=timing_cache, as_json=json, quiet=quiet)


def _numbers(text: str, option: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError(f"{option} {text} is no list of batch sizes", hint=f"{option} 1,32")
    return found


def _profile(text: str) -> tuple[str, dict[str, list[int]]]:
    """Input and shapes of a profile such as `ids=1x16,8x128,32x256`."""
    name, _, shapes = text.rpartition("=")
    try:
        sizes = [[int(size) for size in shape.split("x")] for shape in shapes.split(",")]
    except ValueError:
        sizes = []
    if not name or len(sizes) != 3:
        raise UserError(f"--profile {text} is no profile", hint="--profile ids=1x16,8x128,32x256")
    return name, dict(zip(("min", "best", "max"), sizes, strict=True))
