"""Small networks that the tests share: one per structure that a pass has to handle.

Every entry of `NETS` is a function without arguments that returns `(module, example_args)`: the module in eval mode with
random weights and random batch-norm statistics, and a tuple of positional example inputs (batch 2 in axis 0). `dict_input` and
`keyword_input` return a dict of keyword arguments in place of the tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
            if layer.track_running_stats:
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


class PadSlice(nn.Module):
    """Shortcut of option A (He et al. 2016): every second pixel, zero channels on both sides."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        if stride == 1 and inputs == outputs:
            self.shortcut: nn.Module = nn.Sequential()
        elif option == "A":
            self.shortcut = PadSlice(outputs - inputs)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    def __init__(self, option: str, widths: tuple[int, ...] = (8, 16), blocks: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        inputs = widths[0]
        stages = []
        for stage, width in enumerate(widths):
            layers = []
            for block in range(blocks):
                layers.append(BasicBlock(inputs, width, 2 if stage > 0 and block == 0 else 1, option))
                inputs = width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2 = stages
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        out = F.avg_pool2d(out, out.size(3))
        return self.linear(out.view(out.size(0), -1))


class PreActBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.drop = nn.Dropout(0.3)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(self.drop(F.relu(self.bn2(out)))) + skip


class PreActNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(PreActBlock(8, 8, 1), PreActBlock(8, 16, 2), PreActBlock(16, 16, 1))
        self.bn = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(F.adaptive_avg_pool2d(out, 1).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            InvertedResidual(8, 8, 1, 2),
            InvertedResidual(8, 12, 2, 3),
            InvertedResidual(12, 12, 1, 3),
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(12, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class GroupedBlock(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + x)


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
        return torch.cat([x, out], 1)


class TwoInputs(nn.Module):
    """Two images in; a tuple of logits and a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(1, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)
        self.aux = nn.Linear(8, 4)

    def forward(self, image: Tensor, depth: Tensor) -> tuple[Tensor, dict[str, Any]]:
        joint = F.relu(self.bn(self.left(image) * torch.sigmoid(self.right(depth))))
        pooled = joint.mean((2, 3))
        return self.head(pooled), {"aux": self.aux(pooled), "maps": [joint]}


class DictInput(nn.Module):
    """Keyword inputs: an image and optional features."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.features = nn.Linear(5, 8)
        self.fc = nn.Linear(16, 10)

    def forward(self, pixels: Tensor, *, features: Tensor) -> dict[str, Tensor]:
        hidden = F.relu(self.bn(self.conv(pixels))).mean((2, 3))
        return {"logits": self.fc(torch.cat([hidden, F.relu(self.features(features))], 1)), "hidden": hidden}


class NestedInput(nn.Module):
    """One positional dict as input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 + 5, 10)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = F.relu(self.conv(batch["pixels"])).mean((2, 3))
        return self.fc(torch.cat([hidden, batch["features"]], 1))


class SharedWeights(nn.Module):
    """One module called twice; two linear layers tied by one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8, bias=False)
        self.second.weight = self.first.weight
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.shared(F.relu(self.shared(F.relu(self.stem(x))))))
        return self.fc(self.second(F.relu(self.first(out.mean((2, 3))))))


class SharedKernel(nn.Module):
    """One kernel, two dilations: the same parameter under different hyper-parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        near = self.conv(x)
        far = F.conv2d(x, self.conv.weight, self.conv.bias, padding=2, dilation=2)
        return self.fc(F.relu(near + far).mean((2, 3)))


class Embedder(nn.Module):
    """Token ids in: embedding, layer norm, group norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 12)
        self.group_norm = nn.GroupNorm(3, 12)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(12, 4)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = F.gelu(self.mix(self.norm(self.embed(ids))))
        return self.fc(self.drop(self.group_norm(hidden.transpose(1, 2)).mean(2)))


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
    """Encoder and decoder: strided and transposed convolutions, dropout of whole channels, batch norm without statistics."""

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
