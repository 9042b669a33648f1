"""Runs the gates against an artifact, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from .errors import UserError
from .export.artifact import MANIFEST_NAME, is_artifact
from .factory import DataSpec
from .gates import CheckFile, Gates
from .verdict import Verdict

_PYTEST_INI = "[pytest]\naddopts =\n"
_USAGE_ERROR = 4  # pytest's exit status


class SuiteCrashed(RuntimeError):
    """The gate suite ended without a verdict: a bug, not a failed gate."""


def check(
    artifact: str | Path,
    gates: Gates | None = None,
    *,
    data: DataSpec | None = None,
    metric: str = "top1",
    junit: str | Path | None = None,
    verdict: str | Path | None = None,
) -> Verdict:
    """Measures an artifact and holds it to its gates.

    The gates are a pytest suite (`secateur.runtime_tests`) that runs in a fresh interpreter: nothing of this process,
    and no pytest configuration of the user's, has a part in what is measured.

    Args:
        artifact: Directory that `export` wrote.
        gates: The limits; the default ones if None.
        data: Data factory; its `test` loader feeds the accuracy and parity gates.
        metric: Name of a metric, or `package.module:function`.
        junit: Writes a JUnit XML file here.
        verdict: Writes the verdict here, as JSON.

    Returns:
        The verdict; a broken limit is a result, not an exception.

    Raises:
        UserError: The artifact or the gates cannot be read.
        SuiteCrashed: The suite ended without a verdict; the message holds its output.
    """
    directory = Path(artifact).absolute()
    if not directory.is_dir():
        raise UserError("there is no artifact here", where=str(directory), hint="secateur export writes one")
    if not (directory / MANIFEST_NAME).is_file():
        inside = next((path for path in sorted(directory.iterdir()) if is_artifact(path)), None)
        hint = "secateur export writes one" if inside is None else f"secateur check {inside}"
        raise UserError(
            "the folder holds no artifact", where=str(directory), why="it has no manifest of one", hint=hint
        )
    document = CheckFile(gates=gates or Gates(), data=data and data.anchored(Path.cwd()), metric=metric)
    with tempfile.TemporaryDirectory(prefix="secateur-check-") as scratch:
        folder = Path(scratch)
        (folder / "pytest.ini").write_text(_PYTEST_INI, encoding="utf-8")
        (folder / "gates.yaml").write_text(document.model_dump_json(indent=1), encoding="utf-8")  # JSON is YAML
        done = subprocess.run(
            _command(directory, folder, junit), env=_environment(), capture_output=True, text=True, check=False
        )
        output = f"{done.stdout}\n{done.stderr}".strip()
        if done.returncode == _USAGE_ERROR:
            raise UserError("the gates cannot be run", where=str(directory), why=_usage_error(output))
        try:
            result = Verdict.from_json((folder / "verdict.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SuiteCrashed(f"the gate suite ended with status {done.returncode} and no verdict\n{output}") from None
    if verdict is not None:
        result.save(verdict)
    return result


def _command(artifact: Path, folder: Path, junit: str | Path | None) -> list[str]:
    # -P: the current directory must not hide installed packages. -c, --rootdir, --confcutdir and the suite as a path:
    # no configuration and no conftest of the user's takes part. importlib mode: no test directory enters sys.path.
    suite = _suite()
    command = [sys.executable, "-P", "-m", "pytest", str(suite), f"--confcutdir={suite}"]
    command += ["-c", str(folder / "pytest.ini"), f"--rootdir={folder}"]
    command += ["-p", "no:cacheprovider", "-p", "secateur.runtime_tests.plugin", "--import-mode=importlib", "-q"]
    command += ["--artifact", str(artifact), "--gates", str(folder / "gates.yaml")]
    command += ["--verdict", str(folder / "verdict.json"), "--color=no"]
    if junit is not None:
        command += [f"--junitxml={Path(junit).absolute()}", "-o", "junit_suite_name=secateur"]
    return command


def _suite() -> Path:
    """Where the gate suite is installed."""
    spec = find_spec("secateur.runtime_tests")
    if spec is None or spec.origin is None:
        raise SuiteCrashed("secateur.runtime_tests is missing from this installation")
    return Path(spec.origin).parent


def _environment() -> dict[str, str]:
    """This environment; what can be imported here can be imported there, in the same order.

    Plugins that happen to be installed (hypothesis, xdist, …) have no part in the suite, and take seconds to load.
    """
    variables = {name: value for name, value in os.environ.items() if name not in {"PYTEST_ADDOPTS", "PYTEST_PLUGINS"}}
    variables["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    variables["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
    return variables


def _usage_error(output: str) -> str:
    """What pytest says after `ERROR:`."""
    return output.partition("ERROR:")[2].strip() or output
