"""The recipe: what is wrong in it is named, with what to type next."""

import pytest
import yaml_text

from secateur.errors import ExitCode, UserError
from secateur.recipe_file import load_recipe, parse_recipe, read_yaml, write_yaml


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def refusal(tmp_path, text, **overrides):
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text), overrides)
    assert caught.value.code is ExitCode.USAGE
    return str(caught.value)


def test_defaults_are_filled_in_and_round_trip(tmp_path):
    recipe = load_recipe(write(tmp_path, yaml_text.MINIMAL))
    assert recipe.rank.method == "gate-ggn" and recipe.target == "ort-cpu"
    write_yaml(recipe.model_dump(mode="json"), tmp_path / "resolved.yaml")
    again = parse_recipe(read_yaml(tmp_path / "resolved.yaml", what="recipe"), where="resolved.yaml")
    assert again == recipe


def test_a_misspelled_key_gets_a_suggestion(tmp_path):
    message = refusal(tmp_path, yaml_text.MINIMAL + "ranks: {method: hap}\n")
    assert "unknown key ranks (did you mean rank?)" in message


def test_a_misspelled_nested_key_gets_a_suggestion(tmp_path):
    message = refusal(tmp_path, yaml_text.MINIMAL + "heal: {epoch: 3}\n")
    assert "unknown key heal.epoch (did you mean epochs?)" in message


def test_options_of_the_ranking_method_stand_in_its_section_and_round_trip(tmp_path):
    recipe = load_recipe(write(tmp_path, yaml_text.MINIMAL + "rank: {method: ehap, precision: bf16, probes: 3}\n"))
    assert recipe.rank.options == {"precision": "bf16"} and recipe.rank.probes == 3
    dumped = recipe.model_dump(mode="json")
    assert dumped["rank"]["precision"] == "bf16" and parse_recipe(dumped, where="x") == recipe


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{method: magnitud}", "unknown ranking method 'magnitud' (did you mean magnitude?)"),
        ("{method: 3}", "rank.method"),
        ("{method: hap, layerwis: true}", "unknown option 'layerwis' of ranking method hap (did you mean layerwise?)"),
        ("{sample: 3}", "did you mean samples?"),
        ("{verfy: 3}", "did you mean verify?"),
        ("{method: magnitude, layerwise: true}", "unknown option 'layerwise' of ranking method magnitude"),
        ("{method: hap, layerwise: sometimes}", "layerwise cannot be 'sometimes'"),
        ("{samples: 0}", "rank.samples"),
        ("{probes: 1}", "rank.probes"),
        ("{verify: 3}", "rank.verify"),
        ("{verify_batch_norm: fresh}", "rank.verify_batch_norm"),
    ],
)
def test_what_is_wrong_with_a_ranking_is_said_before_anything_runs(tmp_path, section, expected):
    assert expected in refusal(tmp_path, yaml_text.MINIMAL + f"rank: {section}\n")


def test_a_missing_key_is_named(tmp_path):
    assert "missing key data" in refusal(tmp_path, "model: {factory: 'm:f'}\nbudget: {macs: 50%}\n")


def test_all_errors_are_listed_at_once(tmp_path):
    message = refusal(tmp_path, "modle: {}\nbudget: {macs: 50%}\n")
    assert "3 errors" in message and "unknown key modle" in message and "missing key model" in message


def test_a_budget_without_a_unit_is_refused(tmp_path):
    message = refusal(tmp_path, yaml_text.MINIMAL, **{"budget.macs": 50})
    assert "budget" in message and "unit" in message


def test_an_unknown_target_is_refused(tmp_path):
    assert "ort-cpu" in refusal(tmp_path, yaml_text.MINIMAL + "target: ort-gpu\n")


def test_a_line_that_is_not_yaml_is_named(tmp_path):
    assert "recipe.yaml:2" in refusal(tmp_path, "model: {factory: x\nbudget: [}\n")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no recipe here"):
        load_recipe(tmp_path / "nowhere.yaml")


def test_budgets_on_latency_and_accuracy_become_gates(tmp_path):
    recipe = load_recipe(write(tmp_path, yaml_text.MINIMAL), {"budget.latency": "60%", "budget.accuracy_drop": 0.5})
    assert recipe.gates.latency.max == "60%" and recipe.gates.accuracy.max_drop == 0.5


def test_paths_are_relative_to_the_recipe_and_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTS", "w")
    text = yaml_text.MINIMAL.replace("args: {}", "args: {root: ./here, name: plain}")
    recipe = load_recipe(
        write(tmp_path, text), {"model.checkpoint": "${WEIGHTS}/a.safetensors", "loss": "${ABSENT:-cross_entropy}"}
    )
    assert recipe.model.checkpoint == str(tmp_path / "w" / "a.safetensors")
    assert recipe.data.args == {"root": str(tmp_path / "here"), "name": "plain"}
    assert recipe.loss == "cross_entropy"


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    assert "NO_SUCH_VARIABLE" in refusal(tmp_path, yaml_text.MINIMAL, loss="${NO_SUCH_VARIABLE}")


def test_an_override_through_a_value_is_refused(tmp_path):
    assert "not a section" in refusal(tmp_path, yaml_text.MINIMAL, **{"version.name": "x"})


def test_another_method_on_the_command_line_leaves_out_the_options_of_the_recipes_method(tmp_path):
    path = write(tmp_path, yaml_text.MINIMAL + "rank: {method: hap, samples: 64, tied: max, layerwise: true}\n")
    notes: list[str] = []
    recipe = load_recipe(path, {"rank.method": "gate-ggn"}, note=notes.append)
    assert recipe.rank.options == {} and recipe.rank.samples == 64
    assert [note.split(" ")[0] for note in notes] == ["rank.tied", "rank.layerwise"] and "option of hap" in notes[0]
    kept = load_recipe(path, {"rank.method": "ehap"}, note=notes.append)
    assert kept.rank.options == {"tied": "max", "layerwise": True} and len(notes) == 2
    asked = {"rank.method": "gate-ggn", "rank.tied": "max"}  # beside the method, so it is meant, and wrong
    with pytest.raises(UserError, match="unknown option 'tied'"):
        load_recipe(path, asked)
    default = write(tmp_path, yaml_text.MINIMAL + "rank: {draws: 4}\n")
    assert load_recipe(default, {"rank.method": "taylor"}, note=notes.append).rank.options == {}
    assert "option of gate-ggn" in notes[-1]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ("plan: {by: structured-chita, implant: pointwise}", "structured-chita takes no plan.implant"),
        ("plan: {by: structured-chita, stages: 3}", "set plan.structured.stages"),
        ("plan: {by: structured-chita, frontier: 5}", "structured-chita takes no plan.frontier"),
        ("plan: {implant: center, frontier: 5}", "the frontier is one of plans without implants"),
        ("plan: {by: structured-chita}\nrank: {interactions: true}", "rank.interactions is not read"),
    ],
)
def test_what_a_planner_cannot_use_is_refused(tmp_path, sections, told):
    assert told in refusal(tmp_path, yaml_text.MINIMAL + sections + "\n")


def test_planners_take_what_they_can_use(tmp_path):
    for sections in (
        "plan: {by: milp, implant: pointwise, stages: 2}\nrank: {interactions: true}",
        "plan: {by: structured-chita, structured: {stages: 2}}\nrank: {method: magnitude}",
    ):
        load_recipe(write(tmp_path, yaml_text.MINIMAL + sections + "\n"))
