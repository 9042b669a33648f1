"""A recipe names axes that change their length; what training alone does is said, from the first step to the report."""

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from runs import HERE, secateur

from secateur.errors import ExitCode
from secateur.passes.program import Program

RECIPE = f"""\
version: 1
model: {{factory: "{HERE}/lengths_recipe.py:model", dynamic: {{tokens: [1]}}}}
data: {{factory: "{HERE}/lengths_recipe.py:loaders"}}
budget: {{macs: 60%}}
rank: {{method: magnitude}}
heal: {{epochs: 1, lr: 0.01, precision: fp32}}
quantize: {{samples: 32, when: never}}
gates: {{parity: {{}}}}
threads: 1
"""
NOTE = "StochasticDepth does something else in training"


def recipe(folder: Path, text: str = RECIPE) -> Path:
    (folder / "lengths.yaml").write_text(text)
    return folder / "lengths.yaml"


@pytest.mark.usefixtures("warm_checks")
def test_a_run_keeps_the_lengths_and_says_the_notes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, _, err = secateur("compile", recipe(tmp_path), "--out", run)
    assert code == ExitCode.OK, err
    assert NOTE in " ".join(err.split())
    for step in ("01-capture", "04-apply", "05-heal", "06-quantize"):
        program = Program.load(run / step / "program")
        assert program.dynamic == {"tokens": (1,)} and program.notes[0].startswith(NOTE), step
    session = onnxruntime.InferenceSession(run / "07-export" / "model.onnx")
    for batch, length in ((2, 6), (3, 11)):
        (out,) = session.run(None, {"tokens": torch.randn(batch, length, 8).numpy()})
        assert out.shape == (batch, 2)
    assert NOTE in " ".join((run / "report.html").read_text(encoding="utf-8").split())
    code, out, _ = secateur("inspect", run)
    assert code == ExitCode.OK and NOTE in " ".join(out.split()) and "tokens may have any length along axis 1" in out


def test_inspect_of_a_recipe_says_them_too(tmp_path: Path) -> None:
    code, out, err = secateur("inspect", recipe(tmp_path), "--json")
    assert code == ExitCode.OK, err
    found = json.loads(out)
    assert found["dynamic"] == {"tokens": [1]} and found["notes"][0].startswith(NOTE)


@pytest.mark.parametrize(
    ("dynamic", "told"),
    [("{token: [1]}", "did you mean tokens?"), ("{tokens: [7]}", "axis 7"), ("{tokens: 1}", "model.dynamic.tokens")],
)
def test_wrong_axes_are_a_usage_error(tmp_path: Path, dynamic: str, told: str) -> None:
    code, _, err = secateur("inspect", recipe(tmp_path, RECIPE.replace("{tokens: [1]}", dynamic)))
    assert code == ExitCode.USAGE and told in err, err
