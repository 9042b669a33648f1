"""Networks with implants and blocks to choose from, for tests of plans that choose all at once."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from nets import NETS
from torch import nn

from secateur.compress.implants.loss import offer_implants
from secateur.compress.implants.offers import Offers
from secateur.compress.planner.drops import BlockOffer, measure_blocks
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.passes.capture import capture
from secateur.passes.program import Program


class Chain(nn.Sequential):
    """Convolutions one after another: every group has its two neighbours."""

    def __init__(self) -> None:
        widths = (3, 8, 12, 8)
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@functools.cache
def captured(name: str) -> Program:
    torch.manual_seed(0)
    net = (Chain().eval(), (torch.zeros(2, 3, 8, 8),)) if name == "chain" else NETS[name]()
    return capture(*net)


@functools.cache
def batches(name: str) -> list:
    torch.manual_seed(1)
    shape = captured(name).example_args[0].shape[1:]
    return [(torch.randn(8, *shape), torch.randint(0, 4, (8,))) for _ in range(3)]


@functools.cache
def offered(name: str, form: str = "pointwise") -> Offers:
    return offer_implants(captured(name), batches(name), form)


@functools.cache
def blocks(name: str) -> tuple[BlockOffer, ...]:
    """Blocks with losses as large as those of units, so that the choice is not plain."""
    found = measure_blocks(captured(name), batches(name), F.cross_entropy)
    rng = np.random.default_rng(len(found))
    return tuple(replace(offer, delta_loss=float(rng.lognormal(1, 1))) for offer in found)


def table(name: str, seed: int = 0, unit: str = "loss") -> Sensitivity:
    rng = np.random.default_rng(seed)
    groups = {}
    for group in captured(name).groups:
        if group.frozen is None:
            values = rng.lognormal(0, 1.5, group.width)
            groups[group.name] = Scores(values, 0.1 * values)
    return Sensitivity("hap", unit, groups, {"seed": seed})
