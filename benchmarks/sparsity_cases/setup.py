"""The networks that CHITA, WoodFisher and M-FAC prune: ResNet-20 (their protocol or its own), MLPNet, MobileNetV1."""

from __future__ import annotations

import lzma
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from secateur.checkpoint import load_checkpoint
from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.heal.evaluate import evaluate, top1
from secateur.examples.cifar10 import read
from secateur.examples.cifar_resnet import resnet20
from secateur.examples.tensor_loader import Augmentation, TensorLoader
from secateur.passes.capture import capture
from secateur.passes.program import Program

from .mobilenet import trained

CHECKPOINTS = {
    "resnet20": "checkpoints/resnet20_chita_fp16.safetensors",
    "mlpnet": "checkpoints/mlpnet_mnist_chita_fp32.safetensors",
    "mobilenetv1": "mobilenetv1_half.safetensors",
}
"""Where weights are: under the data, but for MobileNetV1's, which are trained and kept with the results."""

NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "papers": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "own": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mnist": ((0.1307,), (0.3081,)),
}
"""Mean and standard deviation by protocol: `papers` is what their code uses for ResNet-20, and re-estimates batch norm
for; `own` is what that checkpoint was trained with; `mnist` is MLPNet's."""

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
        ignore: Weights that stay dense.
    """

    program: Program
    protocol: str
    train: tuple[torch.Tensor, torch.Tensor]
    test: TensorLoader
    ignore: tuple[str, ...] = ()

    def loader(self, seed: int) -> TensorLoader:
        """Training batches in an order of this seed; those of CIFAR-10 are augmented."""
        return _augmented(self.protocol, self.train, seed)

    def accuracy(self, program: Program) -> float:
        """Top-1 on the test images, in percent."""
        return 100 * evaluate(program, self.test, top1).metric


def read_setup(
    data: Path, protocol: str, *, network: str = "resnet20", test_images: int | None = None, out: Path = Path()
) -> Setup:
    """Loads checkpoint and data.

    Args:
        data: Folder with `checkpoints`, and `cifar-10-batches-bin` or `mnist`.
        protocol: Of ResNet-20, a key of `NORMALISATION`.
        network: A key of `CHECKPOINTS`.
        test_images: Only so many of them.
        out: Folder of the results.
    """
    if network == "mlpnet":
        return _mlpnet(data, test_images)
    if network == "mobilenetv1":
        return _mobilenet(data, out, test_images)
    model = resnet20(shortcut="B", head="fc")
    load_checkpoint(model, data / CHECKPOINTS[network])
    images, labels, test_x, test_y = read(data)
    mean, std = NORMALISATION[protocol]
    test = TensorLoader(test_x[:test_images], test_y[:test_images], batch_size=500, mean=mean, std=std)
    program = capture(model.eval(), (torch.zeros(2, 3, 32, 32),)).eval()
    setup = Setup(program, protocol, (images, labels), test, IGNORE)
    if protocol == "own":
        return setup
    return replace(setup, program=reestimate_batch_norm(program, setup.loader(0), samples=8192).eval())


class MLPNet(nn.Module):
    """784-40-20-10 without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 40, bias=False)
        self.fc2 = nn.Linear(40, 20, bias=False)
        self.fc3 = nn.Linear(20, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [batch, 10] of images [batch, 1, 28, 28]."""
        return self.fc3(self.fc2(self.fc1(x.flatten(1)).relu()).relu())


def _mobilenet(data: Path, out: Path, test_images: int | None) -> Setup:
    images, labels, test_x, test_y = read(data)
    mean, std = NORMALISATION["own"]
    test = TensorLoader(test_x[:test_images], test_y[:test_images], batch_size=500, mean=mean, std=std)
    model = trained(_augmented("own", (images, labels), 0), out / CHECKPOINTS["mobilenetv1"])
    return Setup(capture(model, (torch.zeros(2, 3, 32, 32),)).eval(), "own", (images, labels), test)


def _augmented(protocol: str, samples: tuple[torch.Tensor, torch.Tensor], seed: int) -> TensorLoader:
    mean, std = NORMALISATION[protocol]
    augmentation = None if protocol == "mnist" else Augmentation(pad=4, flip=True)
    return TensorLoader(
        *samples, batch_size=128, mean=mean, std=std, shuffle=True, augmentation=augmentation, seed=seed
    )


def _mlpnet(data: Path, test_images: int | None) -> Setup:
    model = MLPNet()
    load_checkpoint(model, data / CHECKPOINTS["mlpnet"])
    train, test = (
        (_mnist(data / f"mnist/{images}", 28 * 28).view(-1, 1, 28, 28), _mnist(data / f"mnist/{labels}", 1).long())
        for images, labels in (
            ("train-images-5000x28x28.u8.xz", "train-labels-5000.u8"),
            ("test-images-10000x28x28.u8.xz", "test-labels.u8"),
        )
    )
    mean, std = NORMALISATION["mnist"]
    loader = TensorLoader(test[0][:test_images], test[1][:test_images], batch_size=1000, mean=mean, std=std)
    return Setup(capture(model.eval(), (torch.zeros(2, 1, 28, 28),)).eval(), "mnist", train, loader)


def _mnist(path: Path, size: int) -> torch.Tensor:
    """Bytes of a file, [samples, size], or [samples] for a size of one."""
    content = path.read_bytes()
    values = torch.frombuffer(
        bytearray(lzma.decompress(content) if path.suffix == ".xz" else content), dtype=torch.uint8
    )
    return values.view(-1, size).squeeze(1)


def data_folder() -> Path:
    """Where the data are by default."""
    return Path(os.environ.get("SECATEUR_DATA", "../data"))
