"""Small networks that the tests share: one per structure that a pass has to handle.

Every entry of `NETS` is a function without arguments that returns `(module, example_inputs)`: the module in eval mode
with random weights and random batch-norm statistics, and a tuple of positional example inputs with batch 2 in axis 0
(for `keyword_input` a dict of keyword arguments). `captured(name)` is its program.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from net_modules import (
    CifarResNet,
    DenseLayer,
    DictInput,
    Embedder,
    GroupedBlock,
    MobileNet,
    NestedInput,
    PreActNet,
    SharedKernel,
    SharedWeights,
    TwoInputs,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.passes.capture import capture
from secateur.passes.program import Program

Net = tuple[nn.Module, Any]


def randomise_bn(module: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every batch norm random affine parameters and statistics, in place; returns the module in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if not isinstance(layer, _BatchNorm):
                continue
            if layer.affine:
                layer.weight.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
                layer.bias.copy_(0.2 * torch.randn(layer.num_features, generator=generator))
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.copy_(0.2 * torch.randn(layer.num_features, generator=generator))
                layer.running_var.copy_(0.5 + torch.rand(layer.num_features, generator=generator))
    return module.eval()


def rebatch(inputs: Any, batch: int, seed: int = 1) -> Any:
    """Random inputs of the same structure as `inputs` with another batch size."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(inputs, dict):
        return {key: rebatch(value, batch, seed) for key, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return type(inputs)(rebatch(value, batch, seed + i) for i, value in enumerate(inputs))
    if not isinstance(inputs, Tensor):
        return inputs
    shape = (batch, *inputs.shape[1:])
    if inputs.is_floating_point():
        return torch.randn(shape, generator=generator)
    return torch.randint(0, int(inputs.max()) + 1, shape, generator=generator)


def _image(channels: int = 3, size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(7))


def _ready(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomise_bn(build(), seed)


def resnet_a() -> Net:
    """CIFAR ResNet with pad-and-slice shortcuts."""
    return _ready(lambda: CifarResNet("A")), (_image(),)


def resnet_b() -> Net:
    """CIFAR ResNet with projection shortcuts."""
    return _ready(lambda: CifarResNet("B")), (_image(),)


def preact() -> Net:
    """Pre-activation ResNet with dropout."""
    return _ready(PreActNet), (_image(),)


def mobilenet() -> Net:
    """Depthwise convolutions, in-place ReLU6, inverted residuals."""
    return _ready(MobileNet), (_image(),)


def resnext() -> Net:
    """Grouped convolutions inside residual bottlenecks."""

    def build() -> nn.Module:
        stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
        return nn.Sequential(*stem, GroupedBlock(8, 4), GroupedBlock(8, 4), *head)

    return _ready(build), (_image(),)


def densenet() -> Net:
    """Concatenation of all earlier features, with a pooled transition."""

    def build() -> nn.Module:
        transition = [nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False), nn.AvgPool2d(2)]
        dense = [DenseLayer(8, 4), DenseLayer(12, 4), *transition, DenseLayer(8, 4), DenseLayer(12, 4)]
        head = [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)]
        return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), *dense, *head)

    return _ready(build), (_image(),)


def plain() -> Net:
    """Convolutions, max pool, flatten into two linear layers."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding="same", bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(48, 20),
            nn.ReLU(),
            nn.Linear(20, 10),
        )

    return _ready(build), (_image(),)


def biased() -> Net:
    """Convolutions with bias, with and without batch norm, strided and dilated."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Conv2d(8, 10, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(10, 12, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )

    return _ready(build), (_image(),)


def two_inputs() -> Net:
    """Two inputs; nested outputs."""
    return _ready(TwoInputs), (_image(), _image(channels=1))


def keyword_input() -> Net:
    """Keyword inputs; dict output."""
    features = torch.randn(2, 5, generator=torch.Generator().manual_seed(8))
    return _ready(DictInput), {"pixels": _image(), "features": features}


def dict_input() -> Net:
    """One positional dict as input."""
    features = torch.randn(2, 5, generator=torch.Generator().manual_seed(8))
    return _ready(NestedInput), ({"pixels": _image(), "features": features},)


def shared() -> Net:
    """A module called twice and a parameter tied between two."""
    return _ready(SharedWeights), (_image(),)


def shared_kernel() -> Net:
    """One parameter under two sets of hyper-parameters."""
    return _ready(SharedKernel), (_image(),)


def conv1d() -> Net:
    """One-dimensional convolutions and batch norm on sequences."""

    def build() -> nn.Module:
        body = [nn.Conv1d(4, 8, 5, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2)]
        tail = [nn.Conv1d(8, 12, 3, padding=1), nn.BatchNorm1d(12), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()]
        return nn.Sequential(*body, *tail, nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    return _ready(build), (torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(9)),)


def conv3d() -> Net:
    """Three-dimensional convolution, transposed convolution and batch norm."""

    def build() -> nn.Module:
        body = [nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(), nn.ConvTranspose3d(6, 4, 2, stride=2)]
        return nn.Sequential(*body, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))

    return _ready(build), (torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(9)),)


def transposed() -> Net:
    """Encoder, decoder: transposed convolution, dropout of channels, batch norm without affine part or statistics."""

    def build() -> nn.Module:
        down = [nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8, affine=False), nn.ReLU(), nn.Dropout2d(0.2)]
        up = [
            nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1),
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.ReLU(),
        ]
        return nn.Sequential(*down, *up, nn.Conv2d(6, 3, 1))

    return _ready(build), (_image(),)


def embedder() -> Net:
    """Integer inputs: embedding, layer norm, group norm."""
    ids = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(5))
    ids[0, 0] = 10
    return _ready(Embedder), (ids,)


NETS: dict[str, Callable[[], Net]] = {
    build.__name__: build
    for build in (
        resnet_a,
        resnet_b,
        preact,
        mobilenet,
        resnext,
        densenet,
        plain,
        biased,
        two_inputs,
        keyword_input,
        dict_input,
        shared,
        shared_kernel,
        conv1d,
        conv3d,
        transposed,
        embedder,
    )
}
"""Every net by name."""


@functools.cache
def _captured_once(name: str) -> Program:
    return capture(*NETS[name]())


def captured(name: str) -> Program:
    """The program of a net, captured once a session: a copy of its own, which a test may change."""
    return replace(_captured_once(name).clone(), history=("capture",))


IMAGE_NETS: tuple[str, ...] = (
    "resnet_a",
    "resnet_b",
    "preact",
    "mobilenet",
    "resnext",
    "densenet",
    "plain",
    "biased",
    "shared",
)
"""Nets with one image [2, 3, 8, 8] in and logits out: what pruning and INT8 export have to handle end to end."""
