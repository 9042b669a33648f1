"""What keeps a file from being written is said in words, and bugs stay bugs."""

import errno
import json
import os
import subprocess

import pytest
from runs import HERE, secateur, tiny_recipe
from safetensors import SafetensorError

from secateur.disk import disk_errors
from secateur.errors import ExitCode, UserError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "big.bin"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_names_what_was_being_written(error):
    with pytest.raises(UserError, match="no room") as caught, disk_errors("runs/x"):
        raise error
    assert caught.value.where in {"big.bin", "runs/x"} and caught.value.code == ExitCode.USAGE


def test_a_file_that_may_not_be_written_is_an_error_of_the_user(tmp_path):
    with pytest.raises(UserError) as caught, disk_errors(tmp_path):
        (tmp_path / "nowhere" / "file").write_text("")
    assert caught.value.where.endswith("nowhere/file") and caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("error", [ValueError("(os error 28)"), OSError(errno.EIO, "bad"), BrokenPipeError()])
def test_anything_else_stays_what_it_is(error):
    with pytest.raises(type(error)) as caught, disk_errors("x"):
        raise error
    assert caught.value is error


def test_a_run_that_meets_a_full_disk_says_so_and_continues_later(tmp_path, warm):
    """A limit on the size of files does what a full disk does."""
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY)); "
    code = limited + "from secateur.tools.cli import run; sys.exit(run(sys.argv[1:]))"
    argv = ["rank", str(tiny_recipe(tmp_path)), "--out", str(tmp_path / "run"), "--set", "rank.method=magnitude"]
    environment = {**os.environ, "TINY_DIR": str(HERE)}
    command = [str(warm / "python"), "-c", code, *argv]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == ExitCode.USAGE, done.stderr
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    code, printed, err = secateur(*argv, "--json")
    assert code == ExitCode.OK, err
    assert set(json.loads(printed)["steps"]) == {"capture", "rank"}
