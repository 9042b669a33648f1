"""What holds for every ranking method, on networks, data and losses of every form."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS, captured
from torch import nn

from secateur.compress.sensitivity.rank import METHODS, rank
from secateur.errors import ExitCode, UserError
from secateur.passes.capture import capture

NO_DATA = frozenset({"magnitude", "random", "bn-scale"})
WITH_DATA = sorted(set(METHODS) - NO_DATA)


@dataclass(frozen=True)
class Case:
    """A program with data and a loss; `norm`: some group that may shrink has a batch norm."""

    program: Any
    batches: list[Any]
    loss: Any
    norm: bool = False


def images(*shape, n=6, seed=1):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))


def residual():
    x, y = images(3, 8, 8), torch.arange(6)
    return Case(captured("resnet_a"), [(x[:4], y[:4]), (x[4:], y[4:])], F.cross_entropy, norm=True)


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    return Case(capture(model.eval(), images(5, n=2)), [(images(5), images(2, seed=2))], F.mse_loss)


class TwoImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        nn.init.uniform_(self.bn.weight)
        self.hidden, self.head, self.aux = nn.Linear(8, 6), nn.Linear(6, 10), nn.Linear(6, 4)

    def forward(self, image, depth):
        joint = F.relu(self.bn(self.left(image) * torch.sigmoid(self.right(depth)))).mean((2, 3))
        hidden = torch.tanh(self.hidden(joint))
        return self.head(hidden), {"aux": self.aux(hidden)}


def two_inputs():
    """A tuple of logits and a dict out; a loss of two of them."""

    def loss(output, target):
        logits, extra = output
        return F.cross_entropy(logits, target["label"]) + 0.3 * F.mse_loss(extra["aux"], target["aux"])

    target = {"label": torch.arange(6), "aux": images(4, seed=3)}
    inputs = images(3, 8, 8), images(1, 8, 8, seed=2)
    torch.manual_seed(0)
    program = capture(TwoImages().eval(), tuple(x[:2] for x in inputs))
    return Case(program, [(inputs, target)], loss, norm=True)


def keywords():
    """A dict in, a dict out."""
    model, inputs = NETS["keyword_input"]()
    sizes = {key: value.shape[1:] for key, value in inputs.items()}
    batch = {key: images(*shape, seed=i) for i, (key, shape) in enumerate(sizes.items())}
    loss = lambda output, target: F.cross_entropy(output["logits"], target)  # noqa: E731
    return Case(capture(model, inputs), [(batch, torch.arange(6))], loss)


def shared():
    loss = F.cross_entropy
    return Case(captured("shared"), [(images(3, 8, 8), torch.arange(6))], loss)


class Tagger(nn.Module):
    """Token ids and a mask in, logits of every token out; an encoder layer with attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, ids, mask):
        x = self.embed(ids)
        heads = lambda t: t.reshape(t.shape[0], t.shape[1], 2, 4).transpose(1, 2)  # noqa: E731
        h = self.norm(x)
        a = F.scaled_dot_product_attention(
            heads(self.q(h)), heads(self.k(h)), heads(self.v(h)), attn_mask=mask[:, None, None, :]
        )
        x = x + self.out(a.transpose(1, 2).reshape(x.shape))
        return self.head(x + self.down(F.gelu(self.up(x))))


def tokens():
    """The target is a dict with labels, a mask and a weight for each token."""
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 11, (6, 7)), torch.arange(7) < torch.tensor([7, 5, 3, 7, 4, 6])[:, None]
    target = {"labels": torch.randint(0, 5, (6, 7)), "mask": mask, "weight": torch.rand(6, 7)}

    def loss(output, target):
        each = F.cross_entropy(output.transpose(1, 2), target["labels"], reduction="none")
        weight = target["weight"] * target["mask"]
        return (each * weight).sum() / weight.sum()

    return Case(capture(Tagger().eval(), (ids[:2], mask[:2])), [((ids, mask), target)], loss)


CASES = {case.__name__: case for case in (residual, mlp, two_inputs, keywords, shared, tokens)}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]()


class Counting:
    """A loader that counts how often it is read, and yields other data the second time."""

    def __init__(self, batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        if self.passes > 1:
            raise AssertionError("the loader is read twice")
        return iter(self.batches)


def run(case, method, **options):
    loader = None if method in NO_DATA else Counting(case.batches)
    return rank(case.program, loader, case.loss, method=method, probes=2, **options)


def bits(table):
    return {n: s.delta_loss.tobytes() + s.std_error.tobytes() for n, s in table.groups.items()}


def state(module):
    return (
        {name: tensor.clone() for name, tensor in module.state_dict().items()},
        [p.requires_grad for p in module.parameters()],
        [m.training for m in module.modules()],
        [p.grad for p in module.parameters()],
    )


@pytest.mark.parametrize("method", METHODS)
def test_it_scores_every_unit_and_leaves_the_program_as_it_was(case, method):
    """In train mode, with frozen parameters: neither modes, nor batch norm statistics, nor flags move."""
    if method == "bn-scale" and not case.norm:
        with pytest.raises(UserError, match="no batch norm"):
            run(case, method)
        return
    module = case.program.graph_module
    reference = run(case, method)
    try:
        module.train()
        next(iter(module.parameters())).requires_grad_(False)
        before = state(module)
        again = run(case, method)
        after = state(module)
    finally:
        module.eval()
        module.requires_grad_(True)
    assert before[1:] == after[1:]
    assert all(torch.equal(after[0][name], tensor) for name, tensor in before[0].items())
    # The same bits again, from a network that was left in train mode.
    assert bits(again) == bits(reference)
    widths = {group.name: group.width for group in case.program.groups if group.frozen is None}
    assert set(reference.groups) <= set(widths) if method == "bn-scale" else set(reference.groups) == set(widths)
    for name, scores in reference.groups.items():
        assert scores.delta_loss.shape == scores.std_error.shape == (widths[name],)
        assert np.isfinite(scores.delta_loss).all() and (scores.std_error >= 0).all()
    # Something was found out: not all units are alike.
    assert any(np.ptp(scores.delta_loss) > 0 for scores in reference.groups.values())


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = images(1, 4, 4)
    return Case(capture(model, x[:2]), [(x, torch.arange(6) % 3)], F.cross_entropy)


BROKEN = {
    "a loss a sample": ("must be a scalar", None, lambda o, t: F.cross_entropy(o, t, reduction="none")),
    "NaN": ("loss is nan", None, lambda o, t: F.cross_entropy(o, t) * float("nan")),
    "a cut graph": ("no gradient", None, lambda o, t: F.cross_entropy(o, t).detach()),
    "no batch": ("loader is empty", [], F.cross_entropy),
    "labels": ("labels are out of range", [(torch.zeros(2, 1, 4, 4), torch.tensor([0, 3]))], F.cross_entropy),
    "shapes": ("does not run on a batch", [(torch.zeros(2, 5, 4, 4), torch.zeros(2).long())], F.cross_entropy),
    "NaN pixels": ("loss is nan", [(torch.full((2, 1, 4, 4), torch.nan), torch.zeros(2).long())], F.cross_entropy),
    "no loss": ("needs a loss", None, None),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("method", WITH_DATA)
def test_bad_data_and_losses_are_named(small, method, broken):
    message, batches, loss = BROKEN[broken]
    with pytest.raises(UserError, match=message) as caught:
        rank(small.program, small.batches if batches is None else batches, loss, method=method, probes=2)
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("method", WITH_DATA)
def test_no_data_is_named(small, method):
    with pytest.raises(UserError, match="needs data") as caught:
        rank(small.program, None, small.loss, method=method)
    assert caught.value.code == ExitCode.USAGE


def test_the_methods_without_data_are_known():
    """If a later method needs no data it belongs into `NO_DATA`; all others are held to the tests of data above."""
    assert set(METHODS) >= NO_DATA and WITH_DATA
