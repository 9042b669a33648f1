"""Every command and code block of the README and the guide is executed, page by page, in a fresh folder.

`bash` and `python` blocks run in order. A `yaml` or `python` block whose first line is `# NAME.yaml` or `# NAME.py` is
written to that file instead. Blocks of language `text`, or of none, show output. A line that has to fail says so:
`… || test $? -eq 3`.

Commands run as they are written, but for two things that save time and change nothing that a page says. Most pages have
interpreters that start at once (`warm_python.py`). And the recipe that `secateur init` writes is made to measure
latencies briefly, with limits that leave room for that.
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
COLD = ("own-model.md",)
"""Pages whose every command has an interpreter of its own."""

RUN_BY_CI = re.compile(r"^(make (demo|test)|git clone .*|cd secateur)$")
"""What sets the project itself up; `.ci/run` runs these two make targets."""

BRIEFLY = r"""
secateur() {
    command secateur "$@" || return
    test "$1" != init || sed --in-place --regexp-extended "$2" \
        --expression 's/(latency: \{max: )100(%, .*seconds: )1\}/\12000\20.1}/; s/(latency_seconds: )45/\13/'
}
"""
LIMITS = ("latency: {max: 2000%, batches: [1, 32], threads: 1, seconds: 0.1}", "latency_seconds: 3 ")
"""What then stands in the recipe."""

_FILE = re.compile(r"# ([\w./-]+\.(?:py|yaml))\n")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_block_of_the_page_runs(page, tmp_path, request):
    found = blocks(page)
    runs = any(block.language in {"bash", "python"} for block in found)
    path = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if runs and page.name not in COLD:
        path.insert(0, str(request.getfixturevalue("warm")))
    env = {**os.environ, "PATH": os.pathsep.join(path), "COLUMNS": "120"}
    for block in found:
        where = f"{page.name}:{block.line}"
        name = _FILE.match(block.text)
        if name and block.language in {"python", "yaml"}:
            (tmp_path / name[1]).write_text(block.text)
        elif block.language == "bash":
            lines = [line for line in block.text.splitlines() if not RUN_BY_CI.match(line.split("#")[0].strip())]
            _run(["bash", "-c", "\n".join(["set -eu", BRIEFLY, *lines])], tmp_path, env, where)
        elif block.language == "python":
            _run(["python", "-c", block.text], tmp_path, env, where)
        else:
            assert block.language in {"yaml", "text"}, f"{where}: unknown language {block.language}"
    recipe = tmp_path / "recipe.yaml"
    assert not recipe.exists() or all(limit in recipe.read_text() for limit in LIMITS)


def test_the_pages_have_something_to_run():
    assert any(block.language == "bash" for page in PAGES for block in blocks(page))
    assert any(block.language == "python" for page in PAGES for block in blocks(page))
    assert {page.name for page in PAGES} > set(COLD)


@pytest.mark.parametrize(
    "code",
    [
        "import os, sys; print(os.getcwd(), sys.argv, __name__, os.environ['GIVEN'], input())",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('said why')",
        "1 / 0",
        "import os; os._exit(9)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import atexit; atexit.register(print, 'at the end'); import beside; print(beside.x)",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.1), print('waited for'))).start()",
    ],
)
def test_a_warm_command_does_what_a_cold_one_does(warm, tmp_path, code):
    (tmp_path / "beside.py").write_text("x = 3")
    options = {"cwd": tmp_path, "input": "typed\n", "capture_output": True, "text": True}
    env = {**os.environ, "GIVEN": "a value"}
    cold, hot = (
        subprocess.run([python, "-c", code, "-P", "b"], env=env, **options)
        for python in (sys.executable, str(warm / "python"))
    )
    assert hot.returncode == cold.returncode and hot.stdout == cold.stdout
    assert hot.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


def _run(argv, folder, env, where):
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{where} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
