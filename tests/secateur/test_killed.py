"""A compile whose process group is killed in any of its steps continues to the very artifact it would have made."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml_text
from runs import HERE

RECIPE = yaml_text.TINY.replace("epochs: 1,", "epochs: 4,").replace(
    "when: never", "when: always, qat: {epochs: 4, lr: 0.0001, clip_grad: 1.0, precision: fp32}"
)
TRAINED = ("05-heal", "06-quantize")
"""Steps that keep the state of their training."""


def start(folder: Path, command: str) -> subprocess.Popen:
    """Starts a command that leads a process group of its own."""
    (folder / "recipe.yaml").write_text(RECIPE)
    argv = [sys.executable, "-m", "secateur", command, str(folder / "recipe.yaml"), "--out", str(folder / "run")]
    env = {**os.environ, "TINY_DIR": str(HERE)}
    return subprocess.Popen(argv, cwd=folder, env=env, stderr=subprocess.PIPE, start_new_session=True)


def finish(folder: Path, command: str) -> str:
    process = start(folder, command)
    _, err = process.communicate(timeout=500)
    assert process.returncode == 0, err.decode()
    return err.decode()


def artifact(run: Path) -> dict[str, str]:
    """sha256 of every file of the artifact but its manifest, which says when it was made."""
    folder = run / "07-export"
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    finish(folder, "export")
    return artifact(folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["01-capture", "02-rank", "03-plan", "04-apply", "05-heal", "06-quantize", "07-export", "08-check"]
)
def test_a_compile_that_was_killed_continues_to_the_same_bytes(undisturbed, tmp_path, step):
    partial, done = tmp_path / "run" / f"{step}.partial", tmp_path / "run" / step
    awaited = partial / "state" / "training.safetensors" if step in TRAINED else partial / ".key"
    command = "compile" if step == "08-check" else "export"
    process = start(tmp_path, command)
    deadline = time.monotonic() + 240
    while not awaited.exists() and not done.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not done.exists(), "the step ended before the signal came"
    assert partial.exists()
    err = finish(tmp_path, command)
    kept = int(step[:2]) - 1
    assert err.count(" kept") == kept, err
    assert artifact(tmp_path / "run") == undisturbed and "model.onnx" in undisturbed


@pytest.mark.slow
def test_a_compile_that_is_killed_again_and_again_gets_there(undisturbed, tmp_path):
    """Killed after ever longer times, wherever that falls: between steps, inside a write, inside a rename."""
    seconds, process = 1.0, start(tmp_path, "export")
    while process.poll() is None:
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            seconds += 1.0
            process = start(tmp_path, "export")
    assert process.returncode == 0
    assert artifact(tmp_path / "run") == undisturbed
