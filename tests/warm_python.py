"""Interpreters that start at once: `python` and `secateur` on a path, each run in a fork of a process that is warm.

Importing torch and what comes with it takes seconds, and the pages of the guide start eighty interpreters. Here one
process imports everything, and every command is a fork of it: a process of its own, with its own arguments, folder,
environment, streams and exit status, as if it had just been started. What differs is that libraries are imported
already; `test_docs.py` therefore runs a page on interpreters of its own, too.

A command is a small client that passes all of that through a socket. The server forks a keeper, which forks the
command, waits for it and answers with its status.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

COMMANDS = ("python", "secateur")

LIBRARIES = (
    "torch._dynamo",
    "torch.export._trace",
    "torch.distributed",
    "torch.utils.data",
    "networkx",
    "sympy.combinatorics",
    "sklearn.datasets",
    "onnxscript",
)
"""What the commands import of others; one that is not installed is left out."""

OURS = (
    "secateur.api",
    "secateur.checking",
    "secateur.pipeline",
    "secateur.sparsity",
    "secateur.tools.commands",
    "secateur.tools.inspect",
    "secateur.tools.report",
    "secateur.runtime_tests.gate_run",
)
"""What the commands import of ours."""


@contextlib.contextmanager
def warm_commands() -> Iterator[Path]:
    """A folder of commands that start at once, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:  # a path that is short enough for a socket
        commands, address = Path(folder), str(Path(folder) / "socket")
        for name in COMMANDS:
            line = shlex.join([sys.executable, "-IS", __file__, "ask", address, name])
            (commands / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
            (commands / name).chmod(0o755)
        argv = [sys.executable, "-P", __file__, "serve", address, str(commands / "python")]
        server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            assert server.stdout and server.stdout.readline() == b"ready\n", "the warm process did not start"
            yield commands
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def ask(address: str, name: str, *argv: str) -> None:
    """The client: has a command run, and exits as it did."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"+"], [0, 1, 2])
        server.sendall(json.dumps([name, argv, str(Path.cwd()), dict(os.environ)]).encode())
        server.shutdown(socket.SHUT_WR)
        status = int(server.makefile().read() or -signal.SIGKILL)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
        os.kill(os.getpid(), -status)
    sys.exit(status)


def serve(address: str, executable: str) -> NoReturn:
    """The server; does not return."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name in OURS:
        importlib.import_module(name)
    gc.freeze()  # collections in a command leave alone what it shares with the server, which would be copied
    sys.executable = executable
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are not waited for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            if sys.stdin in select.select([listener, sys.stdin], [], [])[0]:
                sys.exit()  # whoever started the server is gone
            connection, _ = listener.accept()
            if os.fork() == 0:
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with connection:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        name, argv, folder, environment = json.loads(connection.makefile("rb").read())
        if child := os.fork():
            for stream in streams:
                os.close(stream)
            _, status = os.waitpid(child, 0)
            connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry not in sys.path]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _leave(_status(name, argv))


def _status(name: str, argv: Sequence[str]) -> int:
    """Runs a command, and says with what status an interpreter would exit."""
    try:
        _main(name, argv)
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
            return 1
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(status: int) -> NoReturn:
    """Exits as an interpreter does, but does not take the modules apart: they would be copied for that."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _main(name: str, argv: Sequence[str]) -> None:
    """What the interpreter does with its arguments."""
    if name == "secateur":
        name, argv = "python", ["-P", "-m", "secateur", *argv]
    match argv:
        case ["-P", "-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            sys.path.insert(0, "")
            main = sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), main.__dict__)
        case [file, *rest] if not file.startswith("-"):
            sys.argv = [file, *rest]
            sys.path.insert(0, str(Path(file).parent))
            runpy.run_path(file, run_name="__main__")
        case _:
            raise ValueError(f"python {shlex.join(argv)}: not known here")


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:])
