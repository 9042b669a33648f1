"""Keys that are not read: refused, left out or named, never taken in silence."""

import pytest
import yaml_text
from runs import secateur
from tiny_recipe import TinyNet, batches

from secateur.api import capture, heal
from secateur.compress.sensitivity.rank import METHODS, rank, reads
from secateur.errors import ExitCode, UserError
from secateur.recipe_file import load_recipe, parse_recipe

DATA = batches(32, 1)


def load(tmp_path, sections="", **overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_text.MINIMAL + sections + "\n")
    notes: list[str] = []
    return load_recipe(
        path, {key.replace("__", "."): value for key, value in overrides.items()}, note=notes.append
    ), notes


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ("plan: {structured: {stages: 2}}", "plan.structured is read by plan.by: structured-chita alone"),
        ("plan: {by: milp, structured: {search: iht}}", "not by milp"),
        ("plan: {ni_ratio: 0.3}", "plan.ni_ratio: there are no implants; give their form: implant: pointwise"),
        ("plan: {implant_init: zeros, implant_rank: 2}", "plan.implant_rank, plan.implant_init: there are no implants"),
        ("plan: {implant: pointwise, implant_rank: 2}", "of the form pointwise have no rank"),
        ("heal: {ridge: 0.1}", "ridge: not read by method train; leave it out, or take method: ridge or both"),
        ("heal: {gamma: 0.5}", "gamma: not read by schedule cosine; leave it out, or take schedule: step"),
        ("heal: {optimizer: adamw, momentum: 0.5}", "momentum: not read by optimizer adamw"),
        ("quantize: {qat: {milestones: [0.1]}}", "milestones: not read by schedule cosine"),
    ],
)
def test_a_key_that_its_neighbour_makes_idle_was_taken_in_silence(tmp_path, sections, told):
    with pytest.raises(UserError) as refused:
        load(tmp_path, sections)
    assert told in str(refused.value) and refused.value.code is ExitCode.USAGE


@pytest.mark.parametrize(
    ("sections", "override", "value", "told"),
    [
        ("plan: {by: structured-chita, structured: {stages: 2}}", "plan.by", "auto", "plan.structured of the recipe"),
        ("plan: {implant: tucker, implant_rank: 2}", "plan.implant", "none", "plan.implant_rank of the recipe"),
        ("heal: {method: ridge, ridge: 0.1}", "heal.method", "train", "heal.ridge of the recipe is left out"),
        ("heal: {schedule: step, gamma: 0.5}", "heal.schedule", "linear", "heal.schedule linear does not read it"),
    ],
)
def test_what_the_command_line_makes_idle_is_left_out_and_named(tmp_path, sections, override, value, told):
    recipe, notes = load(tmp_path, sections, **{override: value})
    assert len(notes) == 1 and told in notes[0]
    assert parse_recipe(recipe.model_dump(mode="json"), where="x") == recipe


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ("rank: {method: magnitude, samples: 64, probes: 3}", "rank.samples, rank.probes are not read by rank.method"),
        ("rank: {probes: 3}", "rank.probes is not read by rank.method gate-ggn"),
        ("heal: {method: ridge, epochs: 3, lr: 0.1}", "heal.epochs, heal.lr are not read by heal.method ridge"),
        ("plan: {latency_margin: 0.2}", "plan.latency_margin is not read without a budget on latency"),
        ("plan: {by: gain, search_seconds: 5}", "plan.search_seconds is not read by plan.by gain"),
        ("quantize: {when: always, tolerance: 0.5}", "quantize.tolerance is not read by quantize.when always"),
        ("quantize: {when: never, qat: {epochs: 3}}", "quantize.qat is not read by quantize.when never"),
    ],
)
def test_what_every_method_takes_and_this_one_does_not_read_is_named(tmp_path, sections, told):
    _, notes = load(tmp_path, sections)
    assert len(notes) == 1 and told in notes[0]


@pytest.mark.parametrize(
    "sections",
    [
        "rank: {method: hap, samples: 64, probes: 3}",
        "rank: {method: magnitude, samples: 64, verify: 9}",
        "heal: {method: ridge, epochs: 0, ridge: 0.1}",
        "heal: {method: both, epochs: 2, ridge: 0.1}",
        "plan: {by: structured-chita, structured: {stages: 2}}",
        "plan: {implant: low-rank, implant_rank: 2, ni_ratio: 0.3}",
        "heal: {optimizer: adamw, momentum: 0.9, schedule: step, gamma: 0.5}",
        "quantize: {when: always, qat: {epochs: 3}}",
        "quantize: {when: auto, tolerance: 0.5, qat: {epochs: 3}}",
    ],
)
def test_nothing_is_said_about_what_is_read(tmp_path, sections):
    assert load(tmp_path, sections)[1] == []


def test_epochs_for_a_method_without_training_are_refused_where_they_are_typed(tmp_path):
    with pytest.raises(UserError, match=r"heal\.method ridge does not read epochs"):
        load(tmp_path, **{"heal.method": "ridge", "heal.epochs": 3})
    program = capture(TinyNet(4).eval(), (DATA[0][0][:2],))
    with pytest.raises(UserError, match="does not read epochs, lr"):
        heal(program, DATA, teacher=program, method="ridge", epochs=3, lr=0.1)
    with pytest.raises(UserError, match="ridge: not read by method train"):
        heal(program, DATA, ridge=0.1)


def test_a_recipe_that_init_writes_has_nothing_idle(tmp_path):
    path = tmp_path / "recipe.yaml"
    assert secateur("init", path)[0] == ExitCode.OK
    notes: list[str] = []
    load_recipe(path, note=notes.append)
    assert notes == []


@pytest.mark.parametrize("method", METHODS)
def test_methods_read_what_they_are_said_to_read(method):
    program = capture(TinyNet(4).eval(), (DATA[0][0][:2],))
    usual = {"samples": 16, "probes": 4}

    def scores(**changed):
        table = rank(
            program, DATA, lambda output, target: output.square().mean(), method=method, **{**usual, **changed}
        )
        return {name: group.delta_loss.tolist() for name, group in table.groups.items()}

    for name, value in (("samples", 24), ("probes", 7)):
        assert (scores(**{name: value}) != scores()) == (name in reads(method)), name
