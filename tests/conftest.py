"""What every test gets: one thread, fixed seeds, a cache of its own, and real data where there is some."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from warm_python import warm_commands

ROOT = Path(__file__).parents[1]
PACK = ROOT.parent / "shared" / "data"
"""Beside the checkout: a compact pack of real data for development (optional)."""


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow")


def pytest_configure(config):
    torch.set_num_threads(1)
    # So do the commands that tests start: two busy threads on cores that others use wait for each other for minutes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with contextlib.suppress(ImportError):
        from hypothesis import HealthCheck, settings

        # No verdict on how fast examples are drawn or run: a busy machine would be a failure.
        settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("any machine")
    # Weights that the demo trains are kept between test runs, but not in the user's own cache.
    if not os.environ.get("SECATEUR_CACHE") and (cache := getattr(config, "cache", None)):
        os.environ["SECATEUR_CACHE"] = str(cache.mkdir("secateur"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    _share_out(config, items)
    run_slow = config.getoption("--run-slow") or "slow" in (config.option.markexpr or "")
    has_gpu = torch.cuda.is_available()
    for item in items:
        if "slow" in item.keywords and not run_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --run-slow"))
        if "gpu" in item.keywords and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="gpu: there is no CUDA device"))


def _share_out(config, items):
    """With several processes (`-n 2 --dist loadgroup`) a file stays in one, for its fixtures; a page of the guide is
    long and shares nothing, so each goes by itself, and before all else: what is short evens out the end."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    items.sort(key=lambda item: "page" not in getattr(item, "fixturenames", ()))
    for item in items:
        name = item.nodeid if "page" in getattr(item, "fixturenames", ()) else str(item.path)
        item.add_marker(pytest.mark.xdist_group(name))


def pytest_terminal_summary(terminalreporter):
    """Shows what tests measured (`record_property("measured", text)`), so that a log of CI has the figures."""
    passed = terminalreporter.stats.get("passed", [])
    lines = [text for report in passed for name, text in report.user_properties if name == "measured"]
    if lines:
        terminalreporter.section("measured")
        for line in sorted(lines):
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _seeds():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def warm():
    """A folder with a `python` and a `secateur` that start at once."""
    with warm_commands() as commands:
        yield commands


@pytest.fixture(scope="module")
def warm_checks(warm):
    """Gates of this module run on an interpreter that starts at once; those of `test_checking.py` on a new one."""
    from secateur import checking

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "sys", SimpleNamespace(executable=str(warm / "python"), path=sys.path))
        yield


@pytest.fixture(scope="session")
def cifar_root(pytestconfig):
    """A folder that holds `cifar-10-batches-bin` or `-py`; skips where there is none."""
    for folder in data_folders():
        if any((folder / name).is_dir() for name in ("cifar-10-batches-bin", "cifar-10-batches-py")):
            return folder
    script = PACK / "unpack_cifar10.py"
    cache = getattr(pytestconfig, "cache", None)
    if not script.is_file() or cache is None:
        pytest.skip("CIFAR-10 is not here; set SECATEUR_DATA to the folder that holds cifar-10-batches-bin")
    folder = Path(cache.mkdir("cifar10"))
    if not (folder / "cifar-10-batches-py" / "batches.meta").is_file():  # the last file that the script writes
        command = [sys.executable, str(script), "--out", str(folder), "--py"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"CIFAR-10 cannot be unpacked: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return folder


@pytest.fixture(scope="session")
def checkpoints():
    """The folder of published checkpoints; skips where there is none."""
    for folder in (*data_folders(), PACK):
        if (folder / "checkpoints").is_dir():
            return folder / "checkpoints"
    pytest.skip("the published checkpoints are not here; set SECATEUR_DATA to the folder that holds checkpoints/")


def data_folders():
    """Where the example recipes look for data."""
    chosen = os.environ.get("SECATEUR_DATA")
    return [Path(chosen)] if chosen else [ROOT / "data"]
