"""A small residual network for the 8x8 digits of the demo, which trains itself on first use and is then cached."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cache import cached_weights
from .cifar_resnet import BasicBlock
from .digits_training import Training, train
from .initialise import he_normal


class DigitsResNet(nn.Module):
    """A 3x3 stem and three stages at sizes 8, 4 and 2; projection shortcuts.

    Args:
        width: Channels of the first stage; the others have two and four times as many.
        blocks: Basic blocks of each stage.
        num_classes: Outputs of the last layer.
    """

    def __init__(self, *, width: int = 32, blocks: int = 1, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, layers = width, []
        for stage in range(3):
            for index in range(blocks):
                out = width * 2**stage
                layers.append(BasicBlock(channels, out, 2 if stage and not index else 1, "B"))
                channels = out
        self.blocks = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images [batch, 1, 8, 8] to logits [batch, num_classes]."""
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.pool(out), 1))


def digits_resnet(*, width: int = 32, blocks: int = 1, num_classes: int = 10) -> DigitsResNet:
    """The network of the demo, untrained."""
    return DigitsResNet(width=width, blocks=blocks, num_classes=num_classes)


def digits_model(*, width: int = 32, epochs: int = 20, seed: int = 0) -> DigitsResNet:
    """The network of the demo, trained to about 99 % of the digits that `digits.loaders()` keeps for testing.

    Args:
        width: Channels of the first stage.
        epochs: Passes over the training images.
        seed: Of the initial weights.

    Raises:
        EnvironmentLacksError: scikit-learn is not installed and the cache holds no weights.
    """
    settings = Training(width=width, epochs=epochs, seed=seed)
    # Forked, so that asking for the model draws the same random numbers whether or not it was cached.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = digits_resnet(width=width)
        weights = cached_weights(settings.cache_name(), lambda: train(model, settings))
    model.load_state_dict(weights)
    return model.eval()
