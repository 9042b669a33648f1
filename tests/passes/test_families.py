"""Families that have to prune, not merely survive: what can go, by hand, and that removing is masking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from family_nets import FAMILY_NETS, ConvNextBlock, Mixer, Recurrent, ResponseNorm, Transpose
from nets import randomise_bn, rebatch
from oracle import assert_same_function
from torch import nn

from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.verify import verify

_INCEPTION = {"one.0": 3, "three.0.0": 4, "three.1.0": 5, "pool.1.0": 2}

FREE = {
    "bottleneck": {"0.0": 8, "1.body.0.0": 4, "1.body.1.0": 4},
    "mobilenet_v1": {"0.0": 6, "2.0": 10},
    "mobilenet_v3": {"0.0": 6, "1.body.0.0": 9, "1.body.2.reduce": 3, "2.0": 7},
    "efficientnet": {"0.0": 6, "1.body.0.0": 12, "1.body.2.reduce": 3},
    "squeeze_linear": {"0.0": 6, "1.body.0.0": 5, "1.body.2.reduce": 3},
    "inception": {
        "0.0": 6,
        **{f"{i}.{name}": width for i in (1, 2) for name, width in _INCEPTION.items()},
    },
    "unet": {"one.0": 6, "two.0": 8, "three.0": 10, "up2": 8, "join2.0": 7, "up1": 6, "join1.0": 6},
    "unet_bilinear": {"one.0": 6, "two.0": 8, "three.0": 10, "up2.1": 8, "join2.0": 7, "up1": 6, "join1.0": 6},
    "convnext": {"1.up": 24, "2.up": 24},
    "super_resolution": {"0": 8, "2.body.0.0": 8, "3": 5},  # a channel behind the shuffle is four before it
    "resnest": {"0.0": 3, "1.conv": 6, "1.down": 5, "2.0": 4},  # both groups of the convolution read the same half
    "pyramid": {"c3.0": 6, "c4.0": 8, "c5.0": 9, "lateral.2": 7, "smooth.0": 7},
    "simple_gate": {"0": 6, "1.body.0": 5},
    "instance_norm": {"0": 6, "3.0": 4},
    "group_norm": {"0": 4, "3.0": 4},
    "mixer": {"3.tokens.0": 9, "3.channels.0": 14, "4.tokens.0": 9, "4.channels.0": 14},
    "wavenet": {"first": 6, "gates.0": 6, "gates.1": 6, "skips.0": 5},
    "conv3d": {"0": 6, "5": 4},
}
"""Groups that can shrink."""


def program_of(name: str) -> tuple[Program, tuple]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, inputs = FAMILY_NETS[name]()
    inputs = tuple(x.double() for x in inputs)
    return capture(randomise_bn(net).double(), inputs), inputs


def free(program: Program) -> dict[str, int]:
    return {g.name: g.width for g in program.groups if g.frozen is None}


@pytest.mark.parametrize("name", FAMILY_NETS)
def test_family(name: str) -> None:
    program, inputs = program_of(name)
    widths = free(program)
    assert widths == FREE.get(name, widths)
    assert sum(widths.values()) >= 8
    rng = np.random.default_rng(1)
    keep = {n: rng.permutation(width)[: rng.integers(1, width)] for n, width in widths.items()}
    batches = [tuple(x.double() for x in rebatch(inputs, batch, batch)) for batch in (2, 3)]
    verify(assert_same_function(program, keep, batches, 1e-9))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_stay_and_say_so(kind: type[nn.RNNBase]) -> None:
    program = capture(Recurrent(kind), torch.randn(2, 4, 3))
    groups = {g.name: g for g in program.groups}
    refused = groups["embed"].frozen
    assert refused is not None and "recurrent" in refused.reason and refused.hint
    assert "cell" in refused.where and "family_nets.py:" in refused.where
    assert free(program) == {"hidden": 7}
    verify(assert_same_function(program, {"hidden": [0, 3]}, [(torch.randn(3, 4, 3),)]))


def test_a_mean_over_channels_inside_a_normalisation_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), ToLast(), ResponseNorm(6), nn.Linear(6, 2))
    refused = capture(net, torch.randn(2, 3, 4, 4)).groups[0].frozen
    assert refused is not None and refused.reason == "aten.mean runs over its channels"


def test_token_and_channel_layers_do_not_freeze_each_other() -> None:
    """Without a normalisation, channels pass through layers over tokens."""

    class Free(Mixer):
        def __init__(self) -> None:
            super().__init__(4, 6)
            self.norm1, self.norm2 = nn.Identity(), nn.Identity()

    net = nn.Sequential(nn.Linear(3, 6), Free(), nn.Linear(6, 2))
    program = capture(net, torch.randn(2, 4, 3))
    assert free(program) == {"0": 6, "1.channels.0": 14}
    verify(assert_same_function(program, {"0": [1, 4], "1.channels.0": [0, 5]}, [(torch.randn(3, 4, 3),)]))


def test_normalised_widths_say_what_can_be_pruned_instead() -> None:
    program = capture(nn.Sequential(nn.Conv2d(3, 6, 1), ConvNextBlock(6), nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 4, 4))
    refused = program.groups[0].frozen
    assert refused is not None
    assert refused.reason == "LayerNorm averages over its channels" and "hidden neurons" in refused.hint


def test_one_group_of_group_norm_is_refused_with_a_way_out() -> None:
    program = capture(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(1, 6), nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 4, 4)
    )
    refused = program.groups[0].frozen
    assert refused is not None and "several groups" in refused.hint


class ToLast(Transpose):
    """Channels last."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)
