"""The ResNet-20 that CHITA, WoodFisher and M-FAC prune, under their protocol or its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur.checkpoint import load_checkpoint
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.examples.cifar10 import read
from secateur.examples.cifar_resnet import resnet20
from secateur.examples.tensor_loader import Augmentation, TensorLoader
from secateur.passes.capture import capture
from secateur.passes.program import Program

CHECKPOINT = "checkpoints/resnet20_chita_fp16.safetensors"

Triple = tuple[float, float, float]

NORMALISATION: dict[str, tuple[Triple, Triple]] = {
    "papers": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "own": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation by protocol: `papers` is what their code uses, and re-estimates batch norm for; `own` is
what the checkpoint was trained with."""

IGNORE = ("*.downsample.*",)
"""As in their code: the 1x1 convolutions of the shortcuts stay dense, 268,336 weights may go."""


@dataclass(frozen=True)
class Setup:
    """A dense network and its data.

    Attributes:
        program: The dense network.
        protocol: A key of `NORMALISATION`.
        train: Training images and labels.
        test: Loader of the test images.
    """

    program: Program
    protocol: str
    train: tuple[torch.Tensor, torch.Tensor]
    test: TensorLoader

    def loader(self, seed: int) -> TensorLoader:
        """Augmented training batches, in an order of this seed."""
        mean, std = NORMALISATION[self.protocol]
        augmentation = Augmentation(pad=4, flip=True)
        return TensorLoader(
            *self.train, batch_size=128, mean=mean, std=std, shuffle=True, augmentation=augmentation, seed=seed
        )

    def accuracy(self, program: Program) -> float:
        """Top-1 on the test images, in percent."""
        return 100 * evaluate(program, self.test, top1).metric


def read_setup(data: Path, protocol: str, *, test_images: int | None = None) -> Setup:
    """Loads checkpoint and data.

    Args:
        data: Folder with `cifar-10-batches-bin` and `checkpoints`.
        protocol: A key of `NORMALISATION`.
        test_images: Only so many of them.
    """
    model = resnet20(shortcut="B", head="fc")
    load_checkpoint(model, data / CHECKPOINT)
    images, labels, test_x, test_y = read(data)
    mean, std = NORMALISATION[protocol]
    test = TensorLoader(test_x[:test_images], test_y[:test_images], batch_size=500, mean=mean, std=std)
    program = capture(model.eval(), (torch.zeros(2, 3, 32, 32),)).eval()
    setup = Setup(program, protocol, (images, labels), test)
    if protocol == "own":
        return setup
    return Setup(reestimate_batch_norm(program, setup.loader(0), samples=8192).eval(), protocol, setup.train, test)


def data_folder() -> Path:
    """Where the data are by default."""
    return Path(os.environ.get("SECATEUR_DATA", "../data"))
