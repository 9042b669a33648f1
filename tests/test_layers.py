"""The layer contract: a file imports only from its own room or from one below.

Rooms, top to bottom: `tools` and `runtime_tests`, the front door `secateur`, `compress`, `export`, `passes`,
`errors.py`. `examples` use what is public and are used by nobody. Imports inside functions count, and those for type
checkers.
"""

import ast
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("secateur", "compress", "passes", "export", "runtime_tests", "tools", "examples")
LEVEL = {
    "errors": 0,
    "passes": 1,
    "export": 2,
    "compress": 3,
    "front door": 4,
    "tools": 5,
    "runtime_tests": 5,
    "examples": 6,
}


def module_name(path: Path) -> str:
    """`passes/quant/grid.py` is `secateur.passes.quant.grid`; a package keeps its `__init__`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "secateur" else ("secateur", *parts))


def room(module: str) -> str:
    """The room of a module of secateur; `python -m secateur` is the command line."""
    if module == "secateur.__main__":
        return "tools"
    first = module.split(".")[1:2]
    return first[0] if first and first[0] in LEVEL else "front door"


def imports(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module of secateur that is imported.

    `from .. import passes` may name a module or something in one; it counts as the module `secateur.passes`.
    """
    package = module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "secateur")


def violations(source: str, module: str) -> list[str]:
    """What a module imports although it may not."""
    own = room(module)
    found = []
    for line, name in imports(ast.parse(source), module):
        other = room(name)
        public = own == "examples" and other in {"errors", "front door"}
        if own != other and not public and (LEVEL[other] >= LEVEL[own] or own == "examples"):
            found.append(f"{module}:{line} ({own}) imports {name} ({other})")
    return found


def test_files_import_only_from_their_own_room_or_one_below():
    files = [path for folder in ROOMS for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 30
    assert [v for path in files for v in violations(path.read_text(encoding="utf-8"), module_name(path))] == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("secateur.passes.capture", "from ..compress.data import split_batch"),
        ("secateur.passes.labels.rules", "from ...export import targets"),
        ("secateur.passes.capture", "from .. import pipeline"),
        ("secateur.export.lower", "def f():\n    import secateur.compress.plan"),
        ("secateur.compress.plan", "from ..recipe import Recipe"),
        ("secateur.pipeline", "from .tools.main import app"),
        ("secateur.tools.main", "from ..runtime_tests import conftest"),
        ("secateur.api", "from secateur.examples import digits"),
        ("secateur.errors", "from .passes.program import Program"),
        ("secateur.examples.digits", "from ..passes.program import Program"),
    ],
)
def test_an_import_from_above_is_found(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "secateur.passes.labels.rules",
            "from ...errors import UserError\nfrom ..program import Program",
        ),
        ("secateur.compress.heal.train", "from ...passes.program import Program\nfrom ..data import Loader"),
        ("secateur.__init__", "from .api import rank"),
        ("secateur.tools.main", "from .. import compile"),
        ("secateur.examples.digits", "from ..errors import UserError\nfrom .tensor_loader import Loaders"),
    ],
)
def test_an_import_from_below_is_allowed(module, source):
    assert violations(source, module) == []
