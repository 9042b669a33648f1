"""Loaders that can be read only once, are none, or are empty: every public function says so."""

import pytest
from tiny_recipe import TinyNet, batches

from secateur import api as sc
from secateur.compress.budget import Budget
from secateur.compress.heal.settings import TrainSettings
from secateur.errors import ExitCode, UserError
from secateur.pipeline import compile
from secateur.sparsity import sparsify

DATA = batches(64, 1)


@pytest.fixture(scope="module")
def program():
    return sc.capture(TinyNet(16).eval(), (DATA[0][0][:2],))


@pytest.fixture(scope="module")
def table(program):
    return sc.rank(program, method="magnitude")


CALLS = {
    "rank": lambda p, t, loader: sc.rank(p, loader, samples=16),
    "verify_ranking": lambda p, t, loader: sc.verify_ranking(p, t, loader, units=9),
    "fit_implants": lambda p, t, loader: sc.fit_implants(p, sc.plan(p, t, budget=Budget(macs="60%")), loader),
    "heal": lambda p, t, loader: sc.heal(p, loader, epochs=1),
    "heal, validation": lambda p, t, loader: sc.heal(p, DATA, validation=loader, epochs=1),
    "quantize": lambda p, t, loader: sc.quantize(p, loader),
    "quantize, train": lambda p, t, loader: sc.quantize(p, DATA, train=loader, qat=TrainSettings(epochs=1)),
    "quantize, validation": lambda p, t, loader: sc.quantize(p, DATA, validation=loader),
    "sparsify": lambda p, t, loader: sparsify(p, loader),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_generator_was_read_to_its_end_in_silence(program, table, call):
    for once in ((batch for batch in DATA), iter(DATA), zip(*zip(*DATA, strict=True), strict=True)):
        with pytest.raises(UserError) as refused:
            CALLS[call](program, table, once)
        said = refused.value
        assert "can be read only once" in said.what and "used up" in said.why and "list of batches" in said.hint
        assert said.code is ExitCode.USAGE and said.where == call.partition(",")[0]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("nothing", [7, DATA[0][0].sum], ids=["a number", "a method"])
def test_what_is_no_loader_is_named(program, table, call, nothing):
    with pytest.raises(UserError, match="cannot be iterated over"):
        CALLS[call](program, table, nothing)


@pytest.mark.parametrize("call", CALLS)
def test_an_empty_loader_is_named(program, table, call):
    with pytest.raises(UserError, match=r"empty|no batch|yields nothing"):
        CALLS[call](program, table, [])


def test_a_generator_in_a_data_factory_is_named_by_compile(tmp_path):
    (tmp_path / "once.py").write_text(
        "from tiny_recipe import loaders\n"
        "def data():\n"
        "    found = loaders()\n"
        "    return {**found, 'train': (batch for batch in found['train'])}\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {factory: 'tiny_recipe:model'}\n"
        f"data: {{factory: '{tmp_path}/once.py:data'}}\n"
        "budget: {macs: 50%}\n"
    )
    with pytest.raises(UserError, match="the 'train' loader can be read only once"):
        compile(recipe, out=tmp_path / "run")
