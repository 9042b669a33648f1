"""Ctrl-C: no traceback however early it comes, and nothing said about it that is not so."""

import os
import signal
import subprocess
import sys

import pytest
from runs import HERE, secateur, tiny_recipe

from secateur.errors import ExitCode
from secateur.tools import sparsify as sparsify_command
from secateur.tools.interrupt import RESUMABLE, interrupted

SIGNAL_WHILE_IMPORTING = """
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started pytest may ignore it
from secateur.__main__ import main
real = builtins.__import__
def importing(name, *rest):
    if name == "MODULE":
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest)
builtins.__import__ = importing
main()
"""


def start(folder, module: str, *argv) -> subprocess.CompletedProcess:
    """A command that hears SIGINT as soon as `module` is imported."""
    text = SIGNAL_WHILE_IMPORTING.replace("MODULE", module)
    env = {**os.environ, "TINY_DIR": str(HERE)}
    return subprocess.run([sys.executable, "-c", text, *map(str, argv)], cwd=folder, env=env, capture_output=True)


@pytest.mark.parametrize(
    ("module", "said"), [("typer", "interrupted: nothing had begun"), ("torch", "interrupted: what had finished")]
)
def test_an_interrupt_while_modules_were_imported_showed_a_traceback(tmp_path, module, said):
    done = start(tmp_path, module, "rank", tiny_recipe(tmp_path), "--out", tmp_path / "run")
    assert done.returncode == ExitCode.INTERRUPTED
    assert done.stderr.decode().startswith(said) and b"Traceback" not in done.stderr and done.stderr.count(b"\n") == 1


def test_an_interrupted_sparsify_said_that_something_is_kept(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sparsify_command, "export", stop)
    fast = ("--option", "refit_samples=64", "--option", "stages=1")
    code, _, err = secateur("sparsify", tiny_recipe(tmp_path), *fast, "-o", tmp_path / "out", "-q")
    assert code == ExitCode.INTERRUPTED
    assert err.splitlines()[-1] == "interrupted: nothing of it is kept; what the folder held before stays as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["heal", "r.yaml"], "the same command continues"),
        (["heal", "r.yaml", "--force"], "the same command without --force continues"),
        (["inspect", "r.yaml"], ""),
        (["--version"], ""),
    ],
)
def test_the_message_is_that_of_the_command(argv, said):
    assert said in interrupted(argv) and ("kept" in interrupted(argv)) == (argv[0] in RESUMABLE)


def test_who_ignores_interrupts_goes_on_ignoring_them(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        secateur("--version")
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
