"""The digits of scikit-learn: 1,797 grey images of 8x8 pixels (Alpaydin and Kaynak 1998), part of that package."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import EnvironmentLacksError, UserError
from .tensor_loader import Augmentation, Loaders, TensorLoader

LEVELS = 16.0
"""Pixels are counts from 0 to 16."""

MEAN = (0.305,)
STD = (0.376,)


def loaders(
    *,
    batch_size: int = 64,
    test: int = 500,
    validation: int = 200,
    calibration: int = 512,
    augment: bool = True,
    seed: int = 0,
) -> Loaders:
    """The four loaders of the digits; the split is drawn at random, once for a seed.

    Args:
        batch_size: Samples in a batch.
        test: Images to test with.
        validation: Images to hold out from the rest.
        calibration: Training images that also serve for ranking and for the ranges of quantisation.
        augment: Whether training images are shifted by up to one pixel at random.
        seed: Of the split, the order and the augmentation.

    Raises:
        EnvironmentLacksError: scikit-learn is not installed.
        UserError: The split sizes do not fit.
    """
    images, labels = read()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train = len(labels) - test - validation
    if min(test, calibration) < 1 or validation < 0 or train < calibration:
        raise UserError(
            "the digits cannot be split like this",
            where="data.args",
            why=f"test {test}, validation {validation} and calibration {calibration} of {len(labels)} images",
            hint=f"choose sizes of at least 1 that make at most {len(labels)} together",
        )

    def loader(index: Tensor, *, training: bool = False) -> TensorLoader:
        return TensorLoader(
            images[index],
            labels[index],
            batch_size=batch_size,
            mean=MEAN,
            std=STD,
            scale=LEVELS,
            shuffle=training,
            augmentation=Augmentation(pad=1, flip=False) if training and augment else None,
            seed=seed,
        )

    return Loaders(
        train=loader(order[:train], training=True),
        calibration=loader(order[:calibration]),
        validation=loader(order[train : train + validation]),
        test=loader(order[train + validation :]),
    )


def read() -> tuple[Tensor, Tensor]:
    """Images uint8 [1797, 1, 8, 8] with values 0 to 16, and labels int64 [1797].

    Raises:
        EnvironmentLacksError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EnvironmentLacksError(
            "the digits demo needs scikit-learn",
            where="data.factory",
            why="the package scikit-learn, which brings the images, is not installed",
            hint='pip install "secateur[demo]"',
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    images = np.asarray(pixels, dtype=np.uint8).reshape(-1, 1, 8, 8)
    return torch.from_numpy(images), torch.from_numpy(np.asarray(labels, dtype=np.int64))
