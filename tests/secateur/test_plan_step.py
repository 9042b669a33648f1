"""The plan step says what the planner that a recipe names makes of the rest of the recipe."""

from pathlib import Path

import pytest
from runs import secateur, tiny_recipe

from secateur.errors import ExitCode

RANK = "rank={method: gate-ggn, samples: 64, interactions: true}"


@pytest.mark.parametrize(("by", "said"), [("sensitivity", True), ("gain", False)])
def test_a_threshold_says_that_it_compares_scores_alone(tmp_path: Path, by: str, said: bool) -> None:
    settings = ("--set", RANK, "--set", f"plan.by={by}")
    code, _, err = secateur("plan", tiny_recipe(tmp_path), "--out", tmp_path / "run", *settings)
    assert code == ExitCode.OK, err
    assert ("interactions only order units" in " ".join(err.split())) is said
