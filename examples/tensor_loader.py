"""Batches from images that are held in memory as bytes; augmentation works on whole batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images.

    Attributes:
        pad: Pixels of zero padding on every side before a crop of the original size at a random place.
        flip: Whether every second image, at random, is mirrored left to right.
    """

    pad: int
    flip: bool

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Changes images [batch, channels, h, w]; each one gets its own shift and coin."""
        batch, _, height, width = images.shape
        if self.pad:
            padded = F.pad(images, (self.pad,) * 4)
            places = padded.unfold(2, height, 1).unfold(
                3, width, 1
            )  # view [batch, channels, 2 pad + 1, 2 pad + 1, h, w]
            row, column = torch.randint(2 * self.pad + 1, (2, batch), generator=generator)
            images = places[torch.arange(batch), :, row, column]
        if self.flip:
            mirrored = torch.rand(batch, generator=generator) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        return images


class TensorLoader:
    """Yields `(images, labels)`: float32 [batch, channels, h, w], normalised, and int64 [batch].

    The order and the augmentation are a function of the seed and the epoch alone, so that a run that was stopped
    continues with the batches it would have seen. Iterating twice without `set_epoch` gives the same batches twice.

    Args:
        images: uint8 [samples, channels, h, w].
        labels: int64 [samples].
        batch_size: Samples in a batch; the last one may be smaller.
        mean: Per channel, of pixels scaled to [0, 1].
        std: Per channel, of pixels scaled to [0, 1].
        scale: The pixel value that becomes 1.
        shuffle: Whether each epoch has its own order.
        augmentation: Applied to raw pixels, or None.
        seed: Of order and augmentation.

    Raises:
        UserError: The batch size is less than one, or mean and std do not have one number for each channel.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 255.0,
        shuffle: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise UserError("batch_size must be at least 1", where="data.args.batch_size", why=f"it is {batch_size}")
        channels = images.shape[1]
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise UserError(
                "mean and std do not suit the images",
                where="data.args.mean, data.args.std",
                why=f"images have {channels} channels; mean is {list(mean)} and std is {list(std)}",
                hint=f"give {channels} numbers each, those of std positive",
            )
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shuffle, self.augmentation, self.seed = shuffle, augmentation, seed
        self.epoch = 0
        # (pixel / scale - mean) / std as one multiplication and one addition.
        deviation = torch.tensor(std).view(-1, 1, 1)
        self._factor = 1.0 / (scale * deviation)
        self._offset = -torch.tensor(mean).view(-1, 1, 1) / deviation

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order and the augmentation of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        samples = len(self.labels)
        order = torch.randperm(samples, generator=generator) if self.shuffle else torch.arange(samples)
        for index in order.split(self.batch_size):
            images = self.images[index]
            if self.augmentation is not None:
                images = self.augmentation(images, generator)
            yield images * self._factor + self._offset, self.labels[index]


@dataclass(frozen=True)
class Loaders:
    """What a data factory returns.

    Attributes:
        train: Shuffled and augmented.
        calibration: Training samples without augmentation, in a fixed order.
        validation: Held out from the training data; without augmentation, in a fixed order.
        test: Never used to decide anything.
    """

    train: TensorLoader
    calibration: TensorLoader
    validation: TensorLoader
    test: TensorLoader
