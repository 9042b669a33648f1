"""The recipes that ship are valid and name factories that exist."""

from importlib.resources import files
from pathlib import Path

import pytest

from secateur.recipe_file import load_recipe

RECIPES = sorted(Path(str(files("secateur.examples"))).glob("*.yaml"))


def test_the_recipes_are_there():
    assert {path.stem for path in RECIPES} >= {"digits", "cifar10_resnet20", "cifar10_resnet56"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_its_factories_exist(path, monkeypatch):
    from secateur.factory import load_factory

    monkeypatch.delenv("SECATEUR_DATA", raising=False)
    recipe = load_recipe(path)
    assert callable(load_factory(recipe.model.factory, where="model.factory"))
    assert callable(load_factory(recipe.data.factory, where="data.factory"))


def test_paths_come_from_the_environment_or_lie_beside_the_examples(monkeypatch, tmp_path):
    (path,) = [p for p in RECIPES if p.stem == "cifar10_resnet20"]
    monkeypatch.setenv("SECATEUR_DATA", str(tmp_path))
    recipe = load_recipe(path)
    assert recipe.data.args["root"] == str(tmp_path / "cifar-10-batches-bin")
    assert recipe.model.checkpoint == str(tmp_path / "checkpoints" / "resnet20_akamaster_fp16.safetensors")
    monkeypatch.delenv("SECATEUR_DATA")
    assert load_recipe(path).data.args["root"] == str(path.resolve().parent.parent / "data" / "cifar-10-batches-bin")
