"""Every command and code block of the README and the guide is executed, page by page, in a fresh folder.

`bash` and `python` blocks run in order. A `yaml` or `python` block whose first line is `# NAME.yaml` or `# NAME.py` is
written to that file instead. Blocks of language `text`, or of none, show output. A line that has to fail says so:
`… || test $? -eq 3`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import blocks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN_BY_CI = re.compile(r"^(make (demo|test)|git clone .*|cd secateur)$")
"""What sets the project itself up; `.ci/run` runs these two make targets."""

_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_the_page_runs(page, tmp_path):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    found = blocks(page)
    for block in found:
        where = f"{page.name}:{block.line}"
        name = _FILE.match(block.text)
        if name and block.language in {"python", "yaml"}:
            (tmp_path / name[1]).write_text(block.text)
        elif block.language == "bash":
            lines = [line for line in block.text.splitlines() if not RUN_BY_CI.match(line.split("#")[0].strip())]
            script = "set -eu\n" + "\n".join(lines)
            _run(["bash", "-c", script], tmp_path, env, where)
        elif block.language == "python":
            _run([sys.executable, "-c", block.text], tmp_path, env, where)
        else:
            assert block.language in {"yaml", "text"}, f"{where}: unknown language {block.language}"


def test_the_pages_have_something_to_run():
    assert any(block.language == "bash" for page in PAGES for block in blocks(page))
    assert any(block.language == "python" for page in PAGES for block in blocks(page))


def _run(argv, folder, env, where):
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{where} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
