"""What a recipe names, ready to be ranked, and the samples that removals are measured on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from secateur.api import capture
from secateur.compress.heal.evaluate import cross_entropy
from secateur.inputs import Data, example_inputs, load_data, load_model
from secateur.passes.program import Program
from secateur.recipe import Recipe
from secateur.recipe_file import load_recipe

from .truth import FOLDS

LOSS = cross_entropy


@dataclass(frozen=True)
class Setup:
    """A trained network and its data.

    Attributes:
        name: Of the recipe.
        recipe: The recipe.
        model: The user's model, in evaluation mode; of the same weights as the program, but not the same tensors.
        program: Its program.
        data: Its loaders.
    """

    name: str
    recipe: Recipe
    model: nn.Module
    program: Program
    data: Data


def read(path: Path) -> Setup:
    """Loads what a recipe names."""
    recipe = load_recipe(path)
    data = load_data(recipe.data)
    args, kwargs = example_inputs(data.calibration)
    program = capture(load_model(recipe.model), args, example_kwargs=kwargs)
    return Setup(path.stem, recipe, load_model(recipe.model).eval(), program.eval(), data)


def truth_samples(setup: Setup, samples: int, turn: int = 0) -> tuple[Tensor, Tensor]:
    """Half of them augmented training images, half test images; fewer if the test set is smaller.

    No estimator reads the same augmented images: those come from later epochs than the first. Every turn has others,
    and other test images while there are some.
    """
    if hasattr(setup.data.train, "set_epoch"):
        setup.data.train.set_epoch(turn + 1)
    train = first_samples(setup.data.train, samples // 2)
    if hasattr(setup.data.train, "set_epoch"):
        setup.data.train.set_epoch(0)
    images, labels = first_samples(setup.data.test, (turn + 1) * (samples // 2))
    test = images[-(samples // 2) :], labels[-(samples // 2) :]
    half = min(len(train[1]), len(test[1])) // (FOLDS // 2) * (FOLDS // 2)
    images, labels = (torch.cat([a[:half], b[:half]]) for a, b in zip(train, test, strict=True))
    return images, labels


def first_samples(loader: Iterable[tuple[Tensor, Tensor]], samples: int) -> tuple[Tensor, Tensor]:
    """The first samples of a loader, in one batch."""
    images, labels, seen = [], [], 0
    for x, y in loader:
        images.append(x)
        labels.append(y)
        seen += len(y)
        if seen >= samples:
            break
    return torch.cat(images)[:samples], torch.cat(labels)[:samples]
