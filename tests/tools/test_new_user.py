"""What somebody types who has read the README only: every slip is named, early, with what to type instead."""

import pytest
from runs import secateur, tiny_recipe

from secateur.errors import ExitCode
from secateur.inputs import LOSSES, METRICS
from secateur.recipe import NAMED

DATA = """\
import tiny_recipe


def _with(**changed):
    return {**tiny_recipe.loaders(), **changed}


def empty_test():
    return _with(test=[])


def triples():
    return _with(calibration=[(x, y, y) for x, y in tiny_recipe.batches(64, 1)])


def bytes_():
    return _with(calibration=[((9 * x).byte(), y) for x, y in tiny_recipe.batches(64, 1)])
"""


def refused(*argv) -> str:
    code, _, err = secateur(*argv)
    assert code == ExitCode.USAGE and "Traceback" not in err, err
    return " ".join(err.split())


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("threads=100000", "less than or equal to 1024"),  # torch was asked for so many, and the process died
        ("gates.latency.threads=100000", "less than or equal to 1024"),
        ("loss=cross_entrop", "'cross_entrop' names no function (did you mean cross_entropy?)"),  # after the capture
        ("metric=top5", "write one of top1, or package.module:function"),
        ("budget.macs=1e999M", "1e999M is too large"),  # "is not positive"
        ("heal.epochs=" + 600 * "[", "nested too deeply"),  # a bug, with its traceback
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_runs(tmp_path, setting, told):
    assert told in refused("rank", tiny_recipe(tmp_path), "--set", setting, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a: " + 600 * b"[" + 600 * b"]", "nested too deeply"),
        ("model: {}".encode("utf-16"), "save it as UTF-8"),
        (b"a: 1\n\tb: 2\n", "recipe.yaml:2:1"),
        (b"seed: 1\nseed: 2\n", 'duplicate key "seed"'),
        (b"", "it holds NoneType"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, told):
    (tmp_path / "recipe.yaml").write_bytes(content)
    assert told in refused("compile", tmp_path / "recipe.yaml", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("empty_test", "the 'test' loader is empty"),
        ("triples", "not tuple of 3"),
        ("bytes_", "the weights are torch.float32, the inputs torch.uint8"),
    ],
)
def test_data_that_cannot_be_used_are_described_and_a_mended_recipe_goes_on_in_the_same_folder(
    tmp_path, function, told
):
    (tmp_path / "data.py").write_text(DATA)
    wrong = ("--set", f"data.factory={tmp_path}/data.py:{function}")
    recipe, run = tiny_recipe(tmp_path), ("--out", tmp_path / "run", "--set", "rank.method=magnitude")
    assert told in refused("rank", recipe, *run, *wrong)
    assert (tmp_path / "run").exists()
    if function == "triples":
        code, _, err = secateur("rank", recipe, *run)  # "this run directory was made with another recipe"
        assert code == ExitCode.OK, err
        assert "made with another recipe" in refused("rank", recipe, *run, "--set", "seed=5")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--sparsity", "70"), "between 0 and 1"),
        (("--sparsity", "seventy"), "write 0.7 or 70%"),
        (("--sparsity", "170%"), "between 0 and 1"),
        (("--pattern", "4:2"), "removes nothing or everything"),
        (("--option", "ignore=nope"), "ignore is tuple[str, ...]"),
        (("--option", "block=[4]"), "block is tuple[int, int] | None"),
        (("--out", "/proc/nope"), "the result cannot be written where: /proc/nope"),  # after all the work was done
    ],
)
def test_a_slip_in_sparsify_is_refused_before_the_model_is_loaded(tmp_path, flags, told):
    recipe = tiny_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("tiny_recipe.py:model", "tiny_recipe.py:no_such_model"))
    assert told in refused("sparsify", recipe, "--out", tmp_path / "out", *flags)


def test_a_sparsity_may_be_written_in_per_cent(tmp_path):
    few = ("--option", "refit_samples=64", "--option", "stages=1", "-q")
    code, out, err = secateur("sparsify", tiny_recipe(tmp_path), "--sparsity", "40%", *few, "--out", tmp_path / "out")
    assert code == ExitCode.OK and "(40.0" in out, err


def test_names_of_losses_and_metrics_are_those_that_there_are():
    assert set(NAMED["loss"]) == set(LOSSES) and set(NAMED["metric"]) == set(METRICS)


def test_a_plan_in_a_recipes_place_was_a_recipe_with_eleven_errors(tmp_path):
    (tmp_path / "plan.yaml").write_text("secateur: plan/1\ngroups: {}\n")
    assert "this is a plan, not a recipe" in refused("apply", tmp_path / "plan.yaml")


def test_a_part_of_a_run_names_the_run(tmp_path):
    recipe, run = tiny_recipe(tmp_path), tmp_path / "run"
    assert secateur("rank", recipe, "--out", run, "--set", "rank.method=magnitude")[0] == ExitCode.OK
    said = refused("plan", run / "02-rank")
    assert "manifest.json and recipe.yaml are missing" in said and said.endswith(
        f"name the run that it is a part of: {run}"
    )
    (tmp_path / "manifest.json").touch()  # as in an artifact
    assert "recipe.yaml is missing" in refused("plan", tmp_path)


def test_a_recipe_without_a_budget_was_refused_only_when_the_ranking_was_done(tmp_path):
    recipe = tiny_recipe(tmp_path)
    recipe.write_text(recipe.read_text().replace("{macs: 60%}", "{accuracy_drop: 1.0}"))
    asked = (recipe, "--out", tmp_path / "run", "--set", "rank.method=magnitude")
    code, _, err = secateur("compile", *asked)
    assert code == ExitCode.USAGE and "alone cannot be planned for" in err and "started" not in err
    assert secateur("rank", *asked)[0] == ExitCode.OK  # which needs none
