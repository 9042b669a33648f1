"""Structure without weights: the same groups as with them."""

from __future__ import annotations

import pytest
import torch
from attention_functions import causal
from attention_layers import Attention
from attention_nets import Block, Classifier, Decoder, LlamaBlock
from net_modules import CifarResNet
from torch import nn

from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.passes.weightless import capture_structure

NETS = {
    "resnet": (lambda: CifarResNet("A"), lambda: torch.zeros(2, 3, 8, 8)),
    "encoder": (lambda: Classifier(Block(Attention(causal))), lambda: torch.zeros(2, 4, 4)),
    "decoder": (lambda: Decoder(LlamaBlock()), lambda: torch.zeros(2, 5, dtype=torch.int64)),
}


@pytest.mark.parametrize("name", NETS)
def test_groups_need_no_weights(name: str) -> None:
    build, inputs = NETS[name]
    with torch.device("meta"):
        empty = build().eval()
    program = capture_structure(empty, inputs())
    assert all(tensor.is_meta for tensor in program.module().parameters())
    expected = capture(build().eval(), inputs())
    assert [(g.name, g.width, g.frozen) for g in program.groups] == [
        (g.name, g.width, g.frozen) for g in expected.groups
    ]
    assert program.static_batch is None


def test_weights_in_memory_are_refused() -> None:
    with pytest.raises(UserError, match="weights in memory"):
        capture_structure(nn.Linear(2, 2), torch.zeros(2, 2))
