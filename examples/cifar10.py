"""CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), from its standard folders.

Reads `cifar-10-batches-bin` (records of one label byte and 3072 pixel bytes) and `cifar-10-batches-py` (pickles, read
by `restricted_pickle`). Nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .restricted_pickle import load_numpy_pickle
from .tensor_loader import Augmentation, Loaders, TensorLoader

IMAGES_IN_FILE = 10_000
PIXELS = 3 * 32 * 32
CLASSES = 10

MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet: what the published checkpoints of the example recipes were trained with."""

STD = (0.229, 0.224, 0.225)

HINT = (
    "get the CIFAR-10 archive (cifar-10-binary.tar.gz or cifar-10-python.tar.gz, linked from "
    "https://www.cs.toronto.edu/~kriz/cifar.html), unpack it, and set data.args.root to the folder; the example "
    "recipes look in the folder that the environment variable SECATEUR_DATA names"
)


def loaders(
    root: str,
    *,
    batch_size: int = 128,
    validation: int = 2000,
    calibration: int = 1024,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
    augment: bool = True,
    seed: int = 0,
) -> Loaders:
    """The four loaders of CIFAR-10.

    The last `validation` training images are held out; the first `calibration` ones, which are also trained on, serve
    for ranking and for the ranges of quantisation.

    Args:
        root: The folder `cifar-10-batches-bin` or `cifar-10-batches-py`, or one that holds either.
        batch_size: Samples in a batch.
        validation: Training images to hold out.
        calibration: Training images to calibrate with.
        mean: Per channel, of pixels scaled to [0, 1].
        std: Per channel, of pixels scaled to [0, 1].
        augment: Whether training images are shifted by up to 4 pixels and mirrored at random.
        seed: Of order and augmentation.

    Raises:
        UserError: The folder or a file is missing or damaged, or the split sizes do not fit.
    """
    train_images, train_labels, test_images, test_labels = read(root)
    kept = len(train_labels) - validation
    if validation < 0 or calibration < 1 or kept < calibration:
        raise UserError(
            "the training images cannot be split like this",
            where="data.args.validation, data.args.calibration",
            why=f"{validation} + {calibration} images of {len(train_labels)}",
            hint="choose validation >= 0, calibration >= 1, and at most 50,000 together",
        )

    def loader(images: Tensor, labels: Tensor, *, train: bool = False) -> TensorLoader:
        return TensorLoader(
            images,
            labels,
            batch_size=batch_size,
            mean=tuple(mean),
            std=tuple(std),
            shuffle=train,
            augmentation=Augmentation(pad=4, flip=True) if train and augment else None,
            seed=seed,
        )

    return Loaders(
        train=loader(train_images[:kept], train_labels[:kept], train=True),
        calibration=loader(train_images[:calibration], train_labels[:calibration]),
        validation=loader(train_images[kept:], train_labels[kept:]),
        test=loader(test_images, test_labels),
    )


def read(root: str | Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reads the whole set.

    Args:
        root: As in `loaders`.

    Returns:
        Training images uint8 [50000, 3, 32, 32] and labels int64 [50000], then the same of the 10,000 test images.

    Raises:
        UserError: A file is missing or damaged.
    """
    folder, suffix = _find(Path(root).expanduser())
    read_file = _read_binary if suffix else _read_pickle
    parts = [read_file(folder / f"data_batch_{number}{suffix}") for number in range(1, 6)]
    test_images, test_labels = read_file(folder / f"test_batch{suffix}")
    images = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    return *_tensors(images, labels), *_tensors(test_images, test_labels)


def _find(root: Path) -> tuple[Path, str]:
    """The folder that holds the batches, and the suffix of its files."""
    for suffix, name in ((".bin", "cifar-10-batches-bin"), ("", "cifar-10-batches-py")):
        for folder in (root, root / name):
            if (folder / f"data_batch_1{suffix}").is_file():
                return folder, suffix
    raise UserError(
        "CIFAR-10 is not here", where=str(root), why="there is no data_batch_1.bin or data_batch_1", hint=HINT
    )


def _read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UserError("a file of CIFAR-10 is missing", where=str(path), hint=HINT)
    raw = np.fromfile(path, dtype=np.uint8)
    expected = IMAGES_IN_FILE * (PIXELS + 1)
    if raw.size != expected:
        raise UserError(
            "a file of CIFAR-10 is damaged", where=str(path), why=f"it has {raw.size} bytes, not {expected}", hint=HINT
        )
    records = raw.reshape(IMAGES_IN_FILE, PIXELS + 1)
    return records[:, 1:], _checked_labels(records[:, 0], path)


def _read_pickle(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UserError("a file of CIFAR-10 is missing", where=str(path), hint=HINT)
    batch = load_numpy_pickle(path)
    if not isinstance(batch, dict):
        batch = {}
    data, labels = batch.get("data"), batch.get("labels")
    if not (
        (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == (IMAGES_IN_FILE, PIXELS))
        and (isinstance(labels, list) and len(labels) == IMAGES_IN_FILE and all(type(v) is int for v in labels))
    ):
        raise UserError(
            "a file of CIFAR-10 is damaged",
            where=str(path),
            why=f"it does not hold data (uint8, {IMAGES_IN_FILE} x {PIXELS}) and {IMAGES_IN_FILE} integer labels",
            hint=HINT,
        )
    return data, _checked_labels(np.asarray(labels), path)


def _checked_labels(labels: np.ndarray, path: Path) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if wrong.size:
        first = int(wrong[0])
        raise UserError(
            f"{wrong.size} labels of CIFAR-10 are out of range",
            where=f"{path}, image {first}",
            why=f"the label is {int(labels[first])}; labels are 0 to {CLASSES - 1}",
            hint=HINT,
        )
    return labels


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    pixels = np.ascontiguousarray(images).reshape(-1, 3, 32, 32)
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))
