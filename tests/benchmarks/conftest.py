"""Makes the benchmarks importable as they import each other, and gives them a tiny trained network."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def ranking_path():
    """Puts `benchmarks/` on the import path, as running a script there does."""
    folder = str(ROOT / "benchmarks")
    sys.path.insert(0, folder)
    yield
    sys.path.remove(folder)


@pytest.fixture
def tiny_recipe_file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "version: 1\n"
        'model: {factory: "tiny_recipe:model"}\n'
        'data: {factory: "tiny_recipe:loaders"}\n'
        "loss: cross_entropy\nmetric: top1\ntarget: ort-cpu\n"
        "budget: {macs: 50%}\n"
        "plan: {floor: 0.1, ignore: [conv1]}\n"
    )
    return path
