"""The source is that of Python 3.11 to 3.13: nothing that a later one has removed, nothing that only warns today."""

import ast
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("secateur", "compress", "passes", "export", "runtime_tests", "tools", "examples", "benchmarks", "tests")
REMOVED = {
    *("distutils", "imp", "asyncore", "asynchat", "smtpd"),  # 3.12
    *("aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "mailcap", "msilib", "nis", "nntplib"),  # 3.13
    *("ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib", "lib2to3"),
    "pkg_resources",  # of setuptools, which is not installed by itself any more
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imported(tree: ast.AST) -> set[str]:
    """Top-level names of the modules that a file imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_no_file_imports_what_later_pythons_have_removed_or_warns_when_it_is_compiled():
    assert len(FILES) > 200
    for path in FILES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an invalid escape is a SyntaxWarning since 3.12
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        assert not imported(tree) & REMOVED, path
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("utcnow")], path


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_another_python_compiles_every_file(version):
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip(f"there is no Python {version} here")
    program = "import sys\nfor path in sys.argv[1:]:\n    compile(open(path, encoding='utf-8').read(), path, 'exec')"
    done = subprocess.run(
        [python, "-W", "error", "-c", program, *map(str, FILES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
