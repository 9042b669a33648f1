"""The plan file: exact round trip, edits by hand, and what it says when an edit contradicts itself."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import captured

from secateur.compress.budget import Budget
from secateur.compress.cost.model import Cost, count
from secateur.compress.plan import GroupPlan, Plan
from secateur.compress.plan_file import dumps, loads
from secateur.compress.planner.plan import plan
from secateur.compress.sensitivity.rank import rank
from secateur.errors import UserError
from secateur.export.targets import ORT_CPU
from secateur.passes.prune import apply

LINE = "{action: prune, keep: 5/8, delta_loss: 3.1e-03 ± 4e-04, params: -90, macs: -5760, removed: [3, 7, 1]}"
TEXT = f"""\
secateur: plan/1
target: ort-cpu
budget: {{macs: 50%}}
ranking: {{method: hap, unit: loss, seed: 0}}
planner: {{by: gain, floor: 0.1}}
program: abc
dense: {{params: 200, macs: 9000}}
planned: {{params: 110, macs: 3240}}
delta_loss: 3.1e-03 ± 4e-04
groups:
  conv1: {LINE}
  fc: {{action: keep, keep: 4/4, reason: "frozen: it is an output"}}
"""


@functools.cache
def made():
    program = captured("resnet_b")
    table = rank(program, method="random", seed=1)
    return program, plan(program, table, target=ORT_CPU, budget=Budget(macs="60%"))


def edited(old, new):
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new)


def test_a_plan_is_one_line_a_group():
    _, p = made()
    lines = dumps(p).splitlines()
    for name, group in p.groups.items():
        (line,) = [text for text in lines if text.startswith(f"  {name}: ")]
        assert f"keep: {group.width - len(group.removed)}/{group.width}" in line and f"action: {group.action}" in line


def test_save_and_load_are_exact(tmp_path):
    _, p = made()
    path = tmp_path / "plan.yaml"
    p.save(path)
    assert Plan.load(path) == p
    text = path.read_text()
    Plan.load(path).save(path)
    assert path.read_text() == text
    assert [f.name for f in tmp_path.iterdir()] == ["plan.yaml"]


names = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def group_plans(draw):
    width = draw(st.integers(1, 20))
    removed = draw(st.lists(st.integers(0, width - 1), unique=True, max_size=width - 1))
    reason = draw(st.just("") | names)
    if not removed:
        return GroupPlan(width, reason=reason)
    error = draw(st.floats(0, 1e300))
    costs = draw(st.integers(-(10**12), 0)), draw(st.integers(-(10**12), 0))
    return GroupPlan(width, tuple(removed), draw(finite), error, *costs, reason)


@settings(max_examples=50, deadline=None)
@given(
    groups=st.dictionaries(names, group_plans(), max_size=4),
    words=st.lists(names, min_size=4, max_size=4),
    delta_loss=finite,
    seed=st.none() | st.integers(0, 99),
    settings_=st.dictionaries(names, st.booleans() | finite | names | st.lists(names), max_size=3),
)
def test_any_plan_survives_its_file(groups, words, delta_loss, seed, settings_):
    target, method, unit, program = words
    whole = Plan(
        target=target,
        budget={"macs": "50%", "accuracy_drop": 0.5},
        method=method,
        unit=unit,
        program=program,
        dense=Cost(10, 20),
        planned=Cost(0, 3),
        delta_loss=delta_loss,
        std_error=1e-30,
        groups=groups,
        seed=seed,
        settings=settings_,
    )
    assert loads(dumps(whole)) == whole


def test_the_kept_units_are_what_apply_takes():
    program, p = made()
    p.check(program)
    smaller = apply(program, p.keep())
    assert count(smaller) == p.planned
    for name, units in p.keep().items():
        group = p.groups[name]
        assert sorted((*units, *group.removed)) == list(range(group.width))


def test_the_text_reads_as_it_looks():
    p = loads(TEXT)
    assert p.groups["conv1"] == GroupPlan(8, (3, 7, 1), 3.1e-3, 4e-4, -90, -5760)
    assert p.groups["conv1"].kept == (0, 2, 4, 5, 6) and p.keep() == {"conv1": (0, 2, 4, 5, 6)}
    assert p.groups["fc"].action == "keep" and p.budget == {"macs": "50%"} and p.planned == Cost(110, 3240)


def test_a_cut_is_made_smaller_or_larger_by_editing_removed():
    smaller = edited("keep: 5/8", "keep: 6/8").replace("[3, 7, 1]", "[3, 7]")
    assert loads(smaller).groups["conv1"].kept == (0, 1, 2, 4, 5, 6)
    assert loads(edited("keep: 5/8", "keep: /8").replace("[3, 7, 1]", "[0, 1, 2, 3, 4]")).keep() == {"conv1": (5, 6, 7)}


def test_a_group_is_kept_whole_by_one_short_line():
    assert loads(edited(LINE, "{action: keep, keep: 8/8}")).keep() == {}


@pytest.mark.parametrize(
    ("old", "new", "what", "hint"),
    [
        ("keep: 5/8", "keep: 6/8", "keep and removed disagree", "to keep 6, removed: [3, 7]"),
        ("keep: 5/8", "keep: 3/8", "keep and removed disagree", "add 2 units to removed"),
        ("keep: 5/8", "keep: 8/8", "keep and removed disagree", "action: keep"),
        ("keep: 5/8", "keep: 0/8", "keep and removed disagree", "between 1 and 8"),
        ("keep: 5/8", "keep: half", "no share of units", "keep: 20/32"),
        ("keep: 5/8, ", "", "the key keep is missing", ""),
        ("[3, 7, 1]", "[3, 8, 1]", "there is no unit 8", ""),
        ("[3, 7, 1]", "[3, 3, 1]", "unit 3 is removed twice", ""),
        ("[3, 7, 1]", "[0, 1, 2, 3, 4, 5, 6, 7]", "no unit of the group would be left", ""),
        ("[3, 7, 1]", "[3, seven, 1]", "not a list of unit numbers", "removed: ["),
        ("[3, 7, 1]", "[]", "contradicts", "action: keep"),
        ("action: prune", "action: keep", "contradicts", "action: prune"),
        ("action: prune", "action: prun", "did you mean prune?", "keep, prune"),
        ("removed:", "remove:", "unknown key remove (did you mean removed?)", ""),
        ("planner:", "planer:", "unknown key planer (did you mean planner?)", ""),
        ("method: hap", "methods: hap", "unknown key methods (did you mean method?)", ""),
        ("target: ort-cpu\n", "", "the key target is missing", ""),
        ("plan/1", "plan/7", "not a plan of this version", "plan again"),
        ("3.1e-03 ± 4e-04,", "little,", "no estimate", "3.1e-03"),
        ("params: -90", "params: few", "no whole number", ""),
        ("groups:\n", "groups: [\n", "not valid YAML", ""),
        ("  fc:", "  conv1:", "not valid YAML", ""),
        (LINE, "gone", "keys with values", ""),
    ],
)
def test_an_edit_that_cannot_be_is_told_apart(tmp_path, old, new, what, hint):
    path = tmp_path / "plan.yaml"
    path.write_text(edited(old, new), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        Plan.load(path)
    assert what in caught.value.what and hint in caught.value.hint and str(path) in caught.value.where


def test_the_hint_of_a_contradiction_can_be_typed():
    with pytest.raises(UserError) as caught:
        loads(edited("keep: 5/8", "keep: 6/8"))
    removed = caught.value.hint.split("removed: ")[1].split("]")[0] + "]"
    mended = edited("keep: 5/8", "keep: 6/8").replace("[3, 7, 1]", removed)
    assert len(loads(mended).groups["conv1"].kept) == 6


@pytest.mark.parametrize(
    "content", [b"", b"[1, 2]", b"\xff\xfe\x00", b"!!python/object/apply:os.system ['true']", b"a: b: c"]
)
def test_what_is_no_plan_is_refused(tmp_path, content):
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Plan.load(path)
    assert str(path) in caught.value.where


def test_missing_and_unwritable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no plan here"):
        Plan.load(tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match="cannot be written"):
        made()[1].save(tmp_path / "no" / "plan.yaml")


def test_a_plan_for_another_program_is_refused():
    program, p = made()
    lines = dict(p.groups)
    frozen = next(g for g in program.groups if g.frozen is not None)
    first = program.groups[0].name
    wrong = {
        "lacks: nowhere": {**lines, "nowhere": GroupPlan(4)},
        "another width": {**lines, first: GroupPlan(9)},
        "says nothing": {n: line for n, line in lines.items() if n != first},
        "cannot be pruned": {**lines, frozen.name: GroupPlan(frozen.width, (0,))},
    }
    for message, groups in wrong.items():
        with pytest.raises(UserError, match=message) as caught:
            replace(p, groups=groups).check(program)
        assert caught.value.hint
    with pytest.raises(UserError, match="another program"):
        replace(p, program="0" * 16).check(program)


def test_numbers_in_the_file_are_rounded_for_people():
    _, p = made()
    for group in p.groups.values():
        assert group.delta_loss == float(np.format_float_scientific(group.delta_loss, 2))


def test_a_plan_said_that_keep_may_be_left_out_and_refused_it():
    with pytest.raises(UserError, match=r"the key keep is missing[\s\S]*keep: /32"):
        loads(edited("keep: 5/8, ", ""))
    for keep in ("keep: /8", 'keep: "?/8"'):
        assert loads(edited("keep: 5/8", keep)).groups["conv1"].removed == (3, 7, 1)
    written = dumps(made()[1])
    head = written[: written.index("secateur:")]
    assert "leave" not in head and "keep: /all" in head
