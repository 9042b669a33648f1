"""Capture says what a model does in training only, and leaves the model as it was."""

import torch
import torch.nn.functional as F
from torch import nn

from secateur.passes.capture import capture
from secateur.passes.program import Program


class Attention(nn.Module):
    """Self-attention whose dropout is inside the fused kernel."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.p = p

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)


class StochasticDepth(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((x.shape[0], 1, 1), 0.8))


def test_dropout_inside_attention_is_said():
    program = capture(nn.Sequential(Attention(0.3), nn.Linear(8, 2)), torch.randn(2, 5, 8))
    (note,) = program.notes
    assert "dropout inside attention (p = 0.3)" in note and note.endswith("layer") and ": 0." in note
    assert capture(nn.Sequential(Attention(0.0)), torch.randn(2, 5, 8)).notes == ()


def test_dropout_of_multi_head_attention_is_said():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    (note,) = capture(layer, torch.randn(2, 5, 8)).notes
    assert "p = 0.2" in note and "self_attn" in note


def test_other_branches_are_named():
    model = nn.Sequential(nn.Linear(8, 8), StochasticDepth(), nn.Linear(8, 8), StochasticDepth())
    (note,) = capture(model, torch.randn(2, 5, 8)).notes
    assert note.startswith("StochasticDepth ") and note.endswith("1 and 1 more")


def test_a_model_that_does_not_run_in_training_is_said():
    class WantsTargets(nn.Module):
        def forward(self, x, targets=None):
            if self.training and targets is None:
                raise ValueError("targets should not be none when in training mode")
            return x * 2

    (note,) = capture(WantsTargets(), torch.randn(2, 3)).notes
    assert "could not be found out" in note and "ValueError: targets should not be none" in note


def test_what_becomes_a_layer_is_no_loss():
    class Functional(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, self.training)

    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.Dropout(0.4), Functional())
    program = capture(model, torch.randn(1, 3, 5))
    assert program.notes == ()
    program.train()
    torch.manual_seed(0)
    assert (program.module()(torch.randn(4, 3, 5)) == 0).float().mean() > 0.5


def test_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), StochasticDepth()).eval()
    model[1].train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(5)
    capture(model, torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)))
    assert float(torch.rand(1)) == float(torch.rand(1, generator=torch.Generator().manual_seed(5)))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert [module.training for module in model] == [False, True, False]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_notes_are_saved(tmp_path):
    program = capture(nn.Sequential(Attention(0.3)), torch.randn(2, 5, 8))
    program.save(tmp_path / "program")
    assert Program.load(tmp_path / "program").notes == program.notes
