"""gate-ggn against the dense Gauss-Newton matrix in float64, for any loss; exact rises where they are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.table import Sensitivity
from secateur.errors import UnsupportedError, UserError
from secateur.passes.capture import capture
from secateur.passes.gates import insert_gates
from secateur.passes.program import Program

CLASSES = 3


class Net(nn.Module):
    """Two convolutions with a residual, and a head."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.second = nn.Conv2d(5, 5, 3, padding=1)
        self.third = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm(self.first(x)))
        out = F.silu(out + self.second(out))
        return self.head(torch.tanh(self.third(out)).mean((2, 3)))


class Tokens(nn.Module):
    """An MLP over tokens [samples, tokens, features] to logits [samples, tokens, classes]."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.down(F.gelu(self.up(x)))))


class Two(nn.Module):
    """Two heads: classes and a number for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.number = nn.Linear(4, 6), nn.Linear(6, CLASSES), nn.Linear(6, 1)
        self.other = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = torch.tanh(self.body(x))
        return {"unused": self.other(x), "classes": self.classes(hidden), "number": self.number(hidden).squeeze(1)}


def program_of(model: nn.Module, *shape: int) -> Program:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    return capture(model.double().eval(), torch.randn(2, *shape, dtype=torch.float64))


def data(target: Callable[[int], Any], *shape: int, sizes: tuple[int, ...] = (4, 3)) -> list[Any]:
    torch.manual_seed(1)
    return [(torch.randn(size, *shape, dtype=torch.float64), target(size)) for size in sizes]


def dense(program: Program, batches: list[Any], loss: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Gradient [units] and Gauss-Newton matrix [units, units] of the mean loss, by brute force."""
    gated = insert_gates(program)
    total = sum(len(x) for x, _ in batches)
    slope, matrix = torch.zeros(gated.units).double(), torch.zeros(gated.units, gated.units).double()
    for x, y in batches:

        def flat(gates: Tensor, x: Tensor = x) -> Tensor:
            gated.source.values = gates[None]
            return torch.cat([leaf.reshape(-1) for leaf in tree_flatten(gated.module(x))[0]])

        leaves, spec = tree_flatten(gated.module(x))

        def loss_of(z: Tensor, y: Any = y, leaves: list = leaves, spec: Any = spec) -> Tensor:
            parts = [
                p.reshape(leaf.shape) for p, leaf in zip(z.split([v.numel() for v in leaves]), leaves, strict=True)
            ]
            return loss(tree_unflatten(parts, spec), y)

        ones = torch.ones(gated.units).double()
        jacobian = torch.func.jacrev(flat)(ones)
        outputs = flat(ones).detach()
        slope += len(x) / total * torch.func.grad(loss_of)(outputs) @ jacobian
        matrix += len(x) / total * jacobian.T @ torch.func.hessian(loss_of)(outputs) @ jacobian
        gated.source.values = None
    columns = np.concatenate([np.arange(s, s + w) for s, w in gated.groups.values()])
    return slope.detach().numpy()[columns], matrix.detach().numpy()[np.ix_(columns, columns)]


def vector(table: Sensitivity, part: str = "delta_loss") -> np.ndarray:
    return np.concatenate([getattr(scores, part) for scores in table.groups.values()])


def labels(size: int) -> Tensor:
    return torch.arange(size) % CLASSES


def masked(output: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """Token-level cross-entropy, mean over the tokens that count."""
    y, mask = target
    each = F.cross_entropy(output.movedim(-1, 1), y, reduction="none")
    return (each * mask).sum() / mask.sum()


def token_labels(size: int) -> tuple[Tensor, Tensor]:
    y = torch.randint(0, CLASSES, (size, 5))
    return y, (torch.rand(size, 5) < 0.6).double().index_fill(1, torch.tensor([0]), 1.0)


def focal(output: Tensor, target: Tensor) -> Tensor:
    log = F.log_softmax(output, 1).gather(1, target[:, None])[:, 0]
    return (-((1 - log.exp()) ** 3) * log).mean()


def reals(size: int) -> Tensor:
    return torch.randn(size, CLASSES).double()


def probabilities(size: int) -> Tensor:
    return torch.rand(size, CLASSES).double()


IMAGE_LOSSES: dict[str, tuple[Callable, Callable]] = {
    "cross_entropy": (F.cross_entropy, labels),
    "smoothed and weighted": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0]).double(), label_smoothing=0.1),
        labels,
    ),
    "temperature": (lambda o, y: F.cross_entropy(o / 3, y), labels),
    "squared error": (F.mse_loss, reals),
    "bernoulli": (F.binary_cross_entropy_with_logits, probabilities),
    "poisson": (F.poisson_nll_loss, probabilities),
    "quartic": (lambda o, y: ((o - y) ** 4).sum(1).mean() + 0.1 * o.square().sum(1).square().mean(), reals),
}


@pytest.mark.parametrize("name", IMAGE_LOSSES)
def test_exact_for_any_loss(name: str) -> None:
    loss, target = IMAGE_LOSSES[name]
    program, batches = program_of(Net(), 2, 5, 5), data(target, 2, 5, 5)
    slope, matrix = dense(program, batches, loss)
    table = rank(program, batches, loss, method="gate-ggn", temperature=1.0, interactions=True)
    np.testing.assert_allclose(vector(table), matrix.diagonal() / 2, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table.interactions, matrix / 2, rtol=1e-9, atol=1e-12)
    assert table.unit == "loss" and table.facts["exact"] and table.facts["outputs"] == CLASSES
    assert table.facts["samples_with_negative_curvature"] == 0
    both = rank(program, batches, loss, method="gate-ggn", temperature=1.0, first_order=True, interactions=True)
    np.testing.assert_allclose(vector(both), matrix.diagonal() / 2 - slope, rtol=1e-9, atol=1e-12)
    assert both.interactions is not None
    np.testing.assert_allclose(both.interactions.diagonal(), vector(both))


def test_softmax_needs_one_vector_less_than_classes() -> None:
    program, batches = program_of(Net(), 2, 5, 5), data(labels, 2, 5, 5)
    assert rank(program, batches, F.cross_entropy, method="gate-ggn", temperature=1.0).facts["vectors"] == CLASSES - 1


def test_tokens_with_a_mask() -> None:
    program, batches = program_of(Tokens(), 5, 4), data(token_labels, 5, 4)
    _, matrix = dense(program, batches, masked)
    table = rank(program, batches, masked, method="gate-ggn", temperature=1.0, draws=0)
    np.testing.assert_allclose(vector(table), matrix.diagonal() / 2, rtol=1e-9, atol=1e-12)


def two_losses(output: dict[str, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(output["classes"], target[0]) + 0.3 * F.mse_loss(output["number"], target[1])


def two_targets(size: int) -> tuple[Tensor, Tensor]:
    return labels(size), torch.randn(size).double()


def test_several_outputs_of_which_one_is_unused() -> None:
    program, batches = program_of(Two(), 4), data(two_targets, 4)
    _, matrix = dense(program, batches, two_losses)
    table = rank(program, batches, two_losses, method="gate-ggn", temperature=1.0)
    np.testing.assert_allclose(vector(table), matrix.diagonal() / 2, rtol=1e-9, atol=1e-12)
    assert table.facts["outputs"] == CLASSES + 1


def test_negative_curvature_counts_as_what_it_is() -> None:
    program, batches = program_of(Net(), 2, 5, 5), data(labels, 2, 5, 5)
    _, matrix = dense(program, batches, focal)
    table = rank(program, batches, focal, method="gate-ggn", temperature=1.0, interactions=True)
    np.testing.assert_allclose(table.interactions, matrix / 2, rtol=1e-9, atol=1e-12)
    assert table.facts["samples_with_negative_curvature"]


def test_rise_is_exact_for_squared_error_behind_one_layer() -> None:
    """Outputs are linear and the loss quadratic in the gates: -g + ½ h is what removal does, to the last digit."""
    program = program_of(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)), 4)
    batches = data(reals, 4)
    table = rank(program, batches, F.mse_loss, method="gate-ggn", temperature=1.0, first_order=True, interactions=True)
    gated = insert_gates(program)

    def loss_without(*units: int) -> float:
        gates = torch.ones(1, gated.units).double()
        gates[0, list(units)] = 0
        gated.source.values = gates
        with torch.no_grad():
            return sum(len(x) * float(F.mse_loss(gated.module(x), y)) for x, y in batches) / 7

    base = loss_without()
    rises = [loss_without(unit) - base for unit in range(6)]
    np.testing.assert_allclose(vector(table), rises, rtol=1e-10)
    assert table.interactions is not None
    for chosen in ([0, 3], [1, 2, 5]):
        together = table.interactions[np.ix_(chosen, chosen)].sum()
        assert together == pytest.approx(loss_without(*chosen) - base, rel=1e-10)


DRAWN: dict[str, tuple[nn.Module, tuple[int, ...], Callable, Callable, str]] = {
    "labels": (Net(), (2, 5, 5), *IMAGE_LOSSES["smoothed and weighted"], "labels drawn from softmax"),
    "tokens": (Tokens(), (5, 4), masked, token_labels, "labels drawn from softmax"),
    "signs": (Net(), (2, 5, 5), F.mse_loss, reals, "signs on a diagonal"),
    "both": (Two(), (4,), two_losses, two_targets, "labels drawn from softmax, signs on a diagonal"),
    "pairs": (Net(), (2, 5, 5), *IMAGE_LOSSES["temperature"], "pairs of random signs and their products"),
    "indefinite": (Net(), (2, 5, 5), focal, labels, "pairs of random signs and their products"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_draws_agree_with_the_exact_matrix_within_their_spread(name: str) -> None:
    model, shape, loss, target, kind = DRAWN[name]
    program, batches = program_of(model, *shape), data(target, *shape)
    exact = vector(rank(program, batches, loss, method="gate-ggn", temperature=1.0, draws=0))
    tables = [
        rank(program, batches, loss, method="gate-ggn", temperature=1.0, draws=3, seed=seed) for seed in range(40)
    ]
    assert tables[0].facts["root"] == kind and tables[0].facts["draws"] == 3 and not tables[0].facts["exact"]
    values = np.stack([vector(table) for table in tables])
    spread = values.std(0, ddof=1)
    assert (spread > 0).any()
    assert (np.abs(values.mean(0) - exact) < 4.5 * spread / np.sqrt(len(values)) + 1e-9).all()
    again = rank(program, batches, loss, method="gate-ggn", temperature=1.0, draws=3, seed=0)
    assert (vector(again) == values[0]).all()


def test_many_outputs_are_drawn_by_themselves() -> None:
    program, batches = program_of(Tokens(8), 5, 4), data(token_labels, 5, 4, sizes=(6, 6))
    table = rank(program, batches, masked, method="gate-ggn", temperature=1.0)
    assert table.facts["outputs"] == 40 and table.facts["draws"] == 32
    exact = rank(program, batches, masked, method="gate-ggn", temperature=1.0, draws=0)
    assert np.corrcoef(vector(table), vector(exact))[0, 1] > 0.9


def test_standard_error_is_that_of_the_mean_over_samples() -> None:
    program = program_of(Net(), 2, 5, 5)
    batches = data(labels, 2, 5, 5)
    table = rank(program, batches, F.cross_entropy, method="gate-ggn", temperature=1.0)
    single = [
        dense(program, [(x[i : i + 1], y[i : i + 1])], F.cross_entropy)[1].diagonal() / 2
        for x, y in batches
        for i in range(len(x))
    ]
    np.testing.assert_allclose(vector(table, "std_error"), np.std(single, 0, ddof=1) / np.sqrt(7), rtol=1e-9)


def test_interactions_survive_saving(tmp_path) -> None:
    program, batches = program_of(Two(), 4), data(two_targets, 4)
    table = rank(program, batches, two_losses, method="gate-ggn", temperature=1.0, interactions=True)
    table.save(tmp_path / "table")
    loaded = Sensitivity.load(tmp_path / "table")
    assert table.interactions is not None and loaded.interactions is not None
    assert loaded.interactions.tobytes() == table.interactions.tobytes()
    rank(program, batches, two_losses, method="gate-ggn", temperature=1.0).save(tmp_path / "none")
    assert Sensitivity.load(tmp_path / "none").interactions is None


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output @ output.T, torch.arange(len(output)))


def broken(output: Tensor, target: Tensor) -> Tensor:
    return output.sum() * float("nan")


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        (contrastive, {}, "couples the samples"),
        (lambda o, y: o.abs().mean(), {}, "no second derivative in the outputs"),
        (lambda o, y: o.detach().square().mean(), {}, "has no gradient"),
        (broken, {}, "the loss is nan"),
        (lambda o, y: o[:, 0], {}, "must be a scalar"),
        (F.cross_entropy, {"draws": -1}, "draws must be a whole number"),
        (F.cross_entropy, {"samples": 1}, "one sample is too few"),
        (None, {}, "needs a loss"),
    ],
)
def test_refusals(loss: Callable | None, options: dict, message: str) -> None:
    program, batches = program_of(Net(), 2, 5, 5), data(labels, 2, 5, 5)
    with pytest.raises(UserError, match=message):
        rank(program, batches, loss, method="gate-ggn", temperature=1.0, **options)


def test_a_network_that_mixes_samples_is_refused() -> None:
    model, inputs = NETS["transposed"]()
    batch = (inputs[0], torch.zeros(2, 3, 8, 8))
    with pytest.raises(UnsupportedError, match="mixes the samples"):
        rank(capture(model, inputs), [batch], F.mse_loss, method="gate-ggn", temperature=1.0)


def test_too_many_units_for_interactions(monkeypatch) -> None:
    monkeypatch.setattr("secateur.compress.sensitivity.gate_ggn._MOST_UNITS", 5)
    with pytest.raises(UserError, match=r"interactions of \d+ units are too many"):
        rank(program_of(Net(), 2, 5, 5), [], F.cross_entropy, method="gate-ggn", temperature=1.0, interactions=True)


def test_the_program_is_left_as_it_was() -> None:
    program, batches = program_of(Net(), 2, 5, 5), data(labels, 2, 5, 5)
    program.train()
    before = {k: v.clone() for k, v in program.module().state_dict().items()}
    rank(program, batches, F.cross_entropy, method="gate-ggn", temperature=1.0)
    assert all(m.training for m in program.module().modules())
    assert all(p.requires_grad and p.grad is None for p in program.module().parameters())
    assert all(torch.equal(v, before[k]) for k, v in program.module().state_dict().items())
