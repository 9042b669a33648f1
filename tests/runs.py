"""Runs the command line in this process, and makes the tiny run that several tests look at."""

import contextlib
import io
import os
from pathlib import Path

import yaml_text

from secateur.tools.cli import run

HERE = Path(__file__).parent


def secateur(*argv) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    out, err = io.StringIO(), io.StringIO()
    os.environ["TINY_DIR"] = str(HERE)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run([str(a) for a in argv])
    return int(code), out.getvalue(), err.getvalue()


def tiny_recipe(folder: Path) -> Path:
    """Writes the recipe of the tiny run."""
    path = folder / "tiny.yaml"
    path.write_text(yaml_text.TINY)
    return path
