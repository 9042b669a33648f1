"""Weight initialisation that the example networks share."""

from __future__ import annotations

from torch import nn


def he_normal(model: nn.Module) -> None:
    """Initialises convolutions and linear layers for ReLU networks, in place.

    Weights are normal with variance 2 / fan-out for convolutions (He et al. 2015, section 2.2, backward case) and
    2 / fan-in for linear layers; linear biases are zero. Batch normalisation keeps torch's ones and zeros.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            nn.init.zeros_(module.bias)
