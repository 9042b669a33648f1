"""The command line: parses, calls, prints. Heavy imports happen inside the commands, so that `--help` is quick."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..disk import disk_errors
from ..errors import ExitCode, UserError
from .cli_device import add_commands
from .interrupt import hear_interrupts, interrupted

# Newer typer brings its own copy of click; this is the usage error of whichever it uses.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="secateur",
    help="Makes trained PyTorch models smaller and proves that they meet a budget on their target.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Source = Annotated[Path, typer.Argument(help="A recipe (YAML), or a run directory to continue.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; runs/NAME of the recipe if not given.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
Force = Annotated[bool, typer.Option("--force", help="Start over; removes what the run directory holds.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Continue with a changed recipe; runs again what that concerns.")
]
MaxMacs = Annotated[str | None, typer.Option(help="Budget on multiply-accumulates: 50% or 20M.", metavar="AMOUNT")]
MaxParams = Annotated[str | None, typer.Option(help="Budget on parameters: 40% or 300k.", metavar="AMOUNT")]
MaxLatency = Annotated[str | None, typer.Option(help="Limit on latency: 60% of the dense, or 2ms.", metavar="AMOUNT")]
MaxDrop = Annotated[
    float | None, typer.Option("--max-accuracy-drop", help="Limit on lost accuracy, in points.", metavar="POINTS")
]
MaxSize = Annotated[str | None, typer.Option(help="Limit on the artifact's size: 40% or 300kB.", metavar="AMOUNT")]
MaxMemory = Annotated[str | None, typer.Option(help="Limit on activation memory: 15% or 64kB.", metavar="AMOUNT")]
RequireDevice = Annotated[
    bool, typer.Option("--require-device", help="Exit with 5 if gates were skipped for want of the target's device.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Verify the graph of every program that a step makes.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any other key: --set heal.epochs=3", metavar="KEY=VALUE")]


def run(argv: Sequence[str]) -> int:
    """Runs one command line.

    Returns:
        The exit code (see `ExitCode`).
    """
    hear_interrupts(argv)
    try:
        with disk_errors("a file"):
            result = app(args=list(argv), standalone_mode=False)
        code = ExitCode(result) if isinstance(result, int) else ExitCode.OK
    except UserError as error:
        print(error.render(), file=sys.stderr)
        return error.code
    except UsageError as error:
        error.show(file=sys.stderr)
        return ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception:
        traceback.print_exc()
        print("error: this is a bug in secateur; please report it with the lines above", file=sys.stderr)
        return ExitCode.BUG
    if code is ExitCode.INTERRUPTED:  # some versions of typer turn the signal into this exit code themselves
        print(interrupted(argv), file=sys.stderr)
    return code


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from ..version import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def compile(
    source: Source,
    out: Out = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    max_accuracy_drop: MaxDrop = None,
    max_size: MaxSize = None,
    seed: Seed = None,
    set_: Set = None,
    resume: Resume = False,
    force: Force = False,
    debug: Debug = False,
    require_device: RequireDevice = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Do everything: from the trained model to a measured, gated INT8 artifact."""
    from .commands import run_steps

    overrides = _overrides(max_macs, max_params, max_latency, max_accuracy_drop, max_size, seed, set_)
    return run_steps(
        source,
        out,
        "check",
        overrides,
        resume=resume,
        force=force,
        debug=debug,
        require_device=require_device,
        as_json=json,
        quiet=quiet,
    )


@app.command()
def rank(
    source: Source,
    out: Out = None,
    method: Annotated[str | None, typer.Option(help="Estimator; its options: --set rank.OPTION=VALUE.")] = None,
    verify: Annotated[
        int | None, typer.Option(help="Really remove so many units, one at a time, and compare.", metavar="UNITS")
    ] = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    seed: Seed = None,
    set_: Set = None,
    resume: Resume = False,
    force: Force = False,
    debug: Debug = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Estimate for every unit how much the loss rises if it is removed."""
    from .commands import run_steps

    named = {"rank.method": method, "rank.verify": verify}
    overrides = {key: value for key, value in named.items() if value is not None}
    overrides |= _overrides(max_macs, max_params, None, None, None, seed, set_)
    return run_steps(source, out, "rank", overrides, resume=resume, force=force, debug=debug, as_json=json, quiet=quiet)


@app.command()
def plan(
    source: Source,
    out: Out = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_latency: MaxLatency = None,
    max_size: MaxSize = None,
    max_memory: MaxMemory = None,
    frontier: Annotated[bool, typer.Option("--frontier", help="Also work out the frontier of loss and cost.")] = False,
    set_: Set = None,
    resume: Resume = False,
    force: Force = False,
    debug: Debug = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Decide what to remove; writes a plan that you can edit."""
    from .commands import run_steps
    from .frontier import POINTS

    overrides = _overrides(max_macs, max_params, max_latency, None, max_size, None, set_)
    overrides |= {"budget.memory": max_memory} if max_memory is not None else {}
    overrides |= {"plan.frontier": POINTS} if frontier else {}
    return run_steps(source, out, "plan", overrides, resume=resume, force=force, debug=debug, as_json=json, quiet=quiet)


def _stage(name: str, text: str) -> None:
    """Adds the command that runs up to one step."""

    def stage(
        source: Source,
        out: Out = None,
        max_macs: MaxMacs = None,
        max_params: MaxParams = None,
        set_: Set = None,
        resume: Resume = False,
        force: Force = False,
        debug: Debug = False,
        json: Json = False,
        quiet: Quiet = False,
    ) -> int:
        from .commands import run_steps

        overrides = _overrides(max_macs, max_params, None, None, None, None, set_)
        return run_steps(
            source, out, name, overrides, resume=resume, force=force, debug=debug, as_json=json, quiet=quiet
        )

    app.command(name, help=text)(stage)


_stage("apply", "Remove what the plan does not keep.")
_stage("heal", "Re-estimate batch norm and fine-tune with distillation.")
_stage("quantize", "Put the healed network on the target's INT8 grid.")
_stage("export", "Write the artifact: ONNX with Q/DQ, and its manifest.")


@app.command()
def check(
    source: Annotated[Path, typer.Argument(help="A run directory or an artifact.", show_default=False)],
    gates: Annotated[Path | None, typer.Option(help="YAML file with `gates:` (and `data:`, `metric:`).")] = None,
    max_latency: MaxLatency = None,
    max_accuracy_drop: MaxDrop = None,
    max_size: MaxSize = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    require_device: RequireDevice = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Hold an artifact against its gates; exits with 3 if one fails."""
    from .commands import run_check

    limits = _overrides(None, None, max_latency, max_accuracy_drop, max_size, None, None)
    return run_check(source, gates, limits, junit=junit, require_device=require_device, as_json=json, quiet=quiet)


@app.command()
def sparsify(
    source: Source,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; runs/NAME-sparse if not given.")] = None,
    sparsity: Annotated[
        str | None, typer.Option(help="Share of weights that become zero: 0.7 or 70%.", metavar="SHARE")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="reconstruct, chita++, chita, chita-bso, chita-cd, a baseline.")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="N:M along the input channels: 2:4.", metavar="N:M")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="Any other: --option stages=10", metavar="KEY=VALUE")
    ] = None,
    heal: Annotated[bool, typer.Option("--heal", help="Fine-tune by the recipe; zeros stay.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise by the recipe; zeros stay.")] = False,
    set_: Set = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier one in the folder.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Make weights zero, unstructured or N:M, and let the others make up for them."""
    from .sparsify import run_sparsify
    from .values import parse_pairs

    named = {"sparsity": sparsity, "method": method, "pattern": pattern}
    options = {key: value for key, value in named.items() if value is not None} | parse_pairs(option or [])
    return run_sparsify(
        source,
        out,
        options,
        parse_pairs(set_ or []),
        heal=heal,
        int8=int8,
        force=force,
        as_json=json,
        quiet=quiet,
    )


@app.command()
def inspect(
    source: Annotated[
        Path,
        typer.Argument(help="Recipe, run directory, program, ranking, plan, verdict, artifact, engine or ONNX file."),
    ],
    json: Json = False,
) -> None:
    """Show what something is: groups and what is frozen, scores, a plan, or an artifact's kernels or engines."""
    from .inspect import inspect as show

    show(source, as_json=json)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A run directory, finished or not, or a plan.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="What it is compared with.", show_default=False)],
    json: Json = False,
) -> None:
    """Show what differs between two runs or two plans: recipe, plan, results."""
    from .diff import diff as show

    show(a, b, as_json=json)


@app.command()
def doctor(
    target: Annotated[str | None, typer.Option(help="Exit with 5 if this target lacks something.")] = None,
    json: Json = False,
) -> int:
    """Show versions, instruction sets, devices, and what each target lacks."""
    from .doctor import doctor as examine

    return examine(target, as_json=json)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Where to write the recipe.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a recipe in which every key is explained."""
    from .init import write_recipe

    write_recipe(path, force=force)


@app.command()
def report(
    source: Annotated[Path, typer.Argument(help="A run directory.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file; report.html in the run by default.")
    ] = None,
) -> None:
    """Write the HTML report of a run again."""
    from .commands import write_run_report

    print(write_run_report(source, out))


add_commands(app)


def _overrides(
    macs: str | None,
    params: str | None,
    latency: str | None,
    drop: float | None,
    size: str | None,
    seed: int | None,
    pairs: list[str] | None,
) -> dict[str, Any]:
    """What the flags say, by dotted key of the recipe."""
    from .values import parse_pairs

    named = {
        "budget.macs": macs,
        "budget.params": params,
        "budget.latency": latency,
        "budget.accuracy_drop": drop,
        "budget.size": size,
        "seed": seed,
    }
    return {key: value for key, value in named.items() if value is not None} | parse_pairs(pairs or [])
