"""What a wheel holds, and that a copy installed from it works without the source tree."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = ["compile", "rank", "plan", "apply", "heal", "quantize", "export", "check", "inspect", "doctor", "init"]
ROOMS = ("secateur", "compress", "passes", "export", "runtime_tests", "tools", "examples")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the tree, built from a copy so that the tree stays clean and nothing stale gets in."""
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel offline needs setuptools 77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for room in ROOMS:
        shutil.copytree(ROOT / room, source / room, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip(["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but what the wheel installs."""
    target = tmp_path_factory.mktemp("site")
    pip(["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)])
    return target


def pip(arguments):
    run([sys.executable, "-m", "pip", "--quiet", *arguments])


def run(argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_installed(target, *arguments, cwd):
    """Runs python with the installed copy before the development install."""
    return run([sys.executable, *arguments], cwd=cwd, env={**os.environ, "PYTHONPATH": str(target)})


def test_every_folder_with_modules_is_a_listed_package():
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    home = {path: package for package, path in folders.items()}
    found = set()
    for init in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        first, *rest = init.parent.relative_to(ROOT).parts
        found.add(".".join([home[first], *rest]))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_one_import_name_and_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"secateur"}
    expected = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and path.suffix in {".py", ".yaml", ".j2", ".typed"}:
                inside = path.relative_to(ROOT).as_posix()
                expected.add(inside if room == "secateur" else f"secateur/{inside}")
    assert {name for name in names if name.startswith("secateur/")} == expected
    assert "secateur/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_copy_is_the_one_that_runs(installed, tmp_path):
    where = run_installed(installed, "-c", "import secateur; print(secateur.__file__)", cwd=tmp_path)
    assert Path(where.strip()) == installed / "secateur" / "__init__.py"
    version = run_installed(installed, "-c", "import secateur; print(secateur.__version__)", cwd=tmp_path)
    assert version.strip() == PROJECT["project"]["version"]


def test_python_dash_m_works_from_the_installed_copy(installed, tmp_path):
    out = run_installed(installed, "-m", "secateur", "--version", cwd=tmp_path)
    assert PROJECT["project"]["version"] in out
    help_text = run_installed(installed, "-m", "secateur", "--help", cwd=tmp_path)
    for command in COMMANDS:
        assert command in help_text


def test_the_script_is_installed(installed):
    scripts = [path.name for path in (installed / "bin").iterdir()] if (installed / "bin").is_dir() else []
    assert any(name.startswith("secateur") for name in scripts)


def test_every_dependency_is_pinned():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonical(name)] = version
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"], *extras["demo"], *extras["dev"]]
    names = {canonical(requirement.split(">=")[0].split("[")[0]) for requirement in wanted}
    assert names <= set(pins)
    assert pins["torch"] == "2.13.0"
    assert all("+" not in version for version in pins.values())


def canonical(name):
    return name.strip().lower().replace("_", "-").replace(".", "-")
