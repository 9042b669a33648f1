"""Public functions that are given the wrong kind of thing: an AttributeError of the depths is no answer."""

import pytest
import torch
from tiny_recipe import TinyNet, batches

from secateur import api as sc
from secateur.compress.budget import Budget
from secateur.errors import ExitCode, UserError
from secateur.export.export import export
from secateur.pipeline import compile
from secateur.sparsity import sparsify

DATA = batches(64, 1)
NET = TinyNet(16).eval()
HALF = Budget(macs="50%")


@pytest.fixture(scope="module")
def program():
    return sc.capture(NET, (DATA[0][0][:2],))


@pytest.fixture(scope="module")
def table(program):
    return sc.rank(program, method="magnitude")


CALLS = {
    "rank": lambda p, t: sc.rank(NET, DATA),
    "verify_ranking": lambda p, t: sc.verify_ranking(p, None, DATA),
    "plan": lambda p, t: sc.plan(p, None, budget=HALF),
    "plan, budget as text": lambda p, t: sc.plan(p, t, budget="50%"),
    "plan, budget as mapping": lambda p, t: sc.plan(p, t, budget={"macs": "50%"}),
    "apply": lambda p, t: sc.apply(p, "plan.yaml"),
    "apply, the model": lambda p, t: sc.apply(NET, {}),
    "mask": lambda p, t: sc.mask(p, None),
    "fit_implants": lambda p, t: sc.fit_implants(p, {}, DATA),
    "heal": lambda p, t: sc.heal(NET, DATA),
    "heal, teacher": lambda p, t: sc.heal(p, DATA, teacher=NET),
    "quantize": lambda p, t: sc.quantize(NET, DATA),
    "quantize, qat as mapping": lambda p, t: sc.quantize(p, DATA, qat={"epochs": 1}),
    "quantize, qat as flag": lambda p, t: sc.quantize(p, DATA, qat=True),
    "sparsify": lambda p, t: sparsify(NET, DATA),
    "export": lambda p, t: export(NET, "nowhere"),
    "export, baseline": lambda p, t: export(p, "nowhere", baseline=NET),
}


@pytest.mark.parametrize("call", CALLS)
def test_the_wrong_kind_of_argument_was_an_error_of_the_depths(program, table, call):
    with pytest.raises(UserError, match=r"must be a \w+, not \w+") as refused:
        CALLS[call](program, table)
    assert refused.value.where == call.partition(",")[0] and refused.value.hint
    assert refused.value.code is ExitCode.USAGE


def test_what_may_be_left_out_may_be_none(program, table):
    keep = sc.plan(program, table, budget=HALF).keep()
    assert sc.apply(program, keep).history[-1] == sc.apply(program, sc.plan(program, table, budget=HALF)).history[-1]
    sc.heal(program, DATA, teacher=None, plan=None, epochs=0)


def test_a_quantised_program_was_folded_and_quantised_again_until_a_key_error(program):
    quantised = sc.quantize(program, DATA)
    with pytest.raises(UserError, match="quantised already"):
        sc.quantize(quantised, DATA)


@pytest.mark.parametrize(
    ("recipe", "until", "told"),
    [
        ("r.yaml", "plann", r"no step 'plann' \(did you mean plan\?\)"),
        ({"model": 1}, "plan", "a path or a Recipe, not dict"),
    ],
)
def test_compile_says_what_a_recipe_and_a_step_are(tmp_path, recipe, until, told):
    with pytest.raises(UserError, match=told):
        compile(recipe, tmp_path / "run", until=until)
    assert not (tmp_path / "run").exists()


def test_a_loss_and_its_mean_are_still_what_the_hint_says(program):
    with pytest.raises(UserError, match=r"called as loss\(output, target\)"):
        sc.rank(program, DATA, "cross_entropy", samples=16)  # type: ignore[arg-type]
    assert torch.isfinite(torch.tensor(sc.rank(program, DATA, samples=16).groups["conv1"].delta_loss)).all()
