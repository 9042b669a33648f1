"""Gauss-Newton estimates in the weights against the full matrix, computed by brute force in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from secateur.compress.sensitivity import per_sample
from secateur.compress.sensitivity.rank import rank
from secateur.errors import UserError
from secateur.passes.capture import capture


class Small(nn.Module):
    """Two residually tied convolutions (one group), a third one."""

    def __init__(self, classes=3):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.conv3 = nn.Conv2d(4, 3, 3)
        self.fc = nn.Linear(3, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + self.conv2(x)
        return self.fc(torch.tanh(self.conv3(F.gelu(x))).mean((2, 3)))


def make(classes=3, samples=12, seed=0):
    torch.manual_seed(seed)
    model = Small(classes).double()
    with torch.no_grad():
        model(3 * torch.randn(64, 2, 5, 5, dtype=torch.float64) + 1)
        model.fc.weight.mul_(4)
    x = torch.randn(samples, 2, 5, 5, dtype=torch.float64)
    return capture(model.eval(), x[:2]), x, torch.randint(0, classes, (samples,))


def exact_scores(program, x, y, loss, form):
    """The three scores by their definitions, from J and H of every sample, one unit at a time."""
    module = program.graph_module.eval()
    groups = [group for group in program.groups if group.frozen is None]
    names = sorted({member.tensor for group in groups for member in group.producers})
    weights = {name: module.get_parameter(name).detach() for name in names}
    matrices = []
    for n in range(len(x)):
        jacobians = torch.func.jacrev(lambda w, n=n: functional_call(module, w, (x[n : n + 1],))[0])(weights)
        jacobian = torch.cat([jacobians[name].flatten(1) for name in names], 1)
        output = module(x[n : n + 1]).detach()
        hessian = torch.func.hessian(lambda o, n=n: loss(o, y[n : n + 1]))(output).reshape(2 * (output.shape[1],))
        values, vectors = torch.linalg.eigh(hessian)
        matrices.append(jacobian.T @ (vectors * values.clamp(min=0)) @ vectors.T @ jacobian)
    matrix = torch.stack(matrices).mean(0).detach()
    scores = {}
    for group in groups:
        scores[group.name] = np.zeros(group.width)
        for unit in range(group.width):
            removed = torch.zeros(len(matrix), dtype=torch.float64)
            for member in group.producers:
                part = {name: torch.zeros_like(weight) for name, weight in weights.items()}
                part[member.tensor].index_fill_(member.axis, torch.as_tensor(member.index[unit]), 1)
                where = torch.cat([part[name].flatten() for name in names]).bool()
                own = torch.cat([weights[name].flatten() for name in names]) * where
                if form == "trace":
                    trace = matrix.diagonal()[where].mean() * own.square().sum()
                    scores[group.name][unit] += 0.5 * float(trace)
                elif form == "obd":
                    scores[group.name][unit] += 0.5 * float((matrix.diagonal() * own.square()).sum())
                removed += own
            if form == "quadratic":
                scores[group.name][unit] = 0.5 * float(removed @ matrix @ removed)
    return scores


def score(program, x, y, form, size=12, loss=F.cross_entropy, **options):
    batches = list(zip(x.split(size), y.split(size), strict=True))
    chosen = {"method": "obd"} if form == "obd" else {"method": "ggn", "form": form}
    return rank(program, batches, loss, **chosen, **options)


def flat(table, part="delta_loss"):
    return np.concatenate([getattr(scores, part) for scores in table.groups.values()])


FORMS = ("trace", "quadratic", "obd")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("loss", [F.cross_entropy, lambda o, t: (o - F.one_hot(t, 3)).square().sum(1).mean()])
def test_as_many_draws_as_the_outputs_need_give_the_exact_matrix(form, loss):
    program, x, y = make()
    table = score(program, x, y, form, loss=loss, draws=4)
    exact = exact_scores(program, x, y, loss, form)
    assert set(exact) == set(table.groups) and len(exact) >= 2
    for name, expected in exact.items():
        np.testing.assert_allclose(table.groups[name].delta_loss, expected, rtol=1e-9)
    # Not one sample had to go by itself.
    assert "one_by_one" not in table.facts


@pytest.mark.parametrize("form", FORMS)
def test_few_draws_are_unbiased_with_a_calibrated_error(form):
    """Over many seeds one draw scatters around the exact value; never negative."""
    program, x, y = make(classes=5)
    exact = np.concatenate(list(exact_scores(program, x, y, F.cross_entropy, form).values()))
    found = np.stack([flat(score(program, x, y, form, draws=1, seed=seed)) for seed in range(16)])
    assert (found >= 0).all()
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.sqrt(np.mean(np.square((found.mean(0) - exact) / np.maximum(error, 1e-15)))) < 1.5
    assert np.median(found.std(0) / exact) < 1


def test_the_standard_error_is_that_of_other_samples():
    program, x, y = make(samples=240)
    tables = [score(program, x[i : i + 20], y[i : i + 20], "trace", size=20) for i in range(0, 240, 20)]
    means, errors = (np.stack([flat(t, part) for t in tables]) for part in ("delta_loss", "std_error"))
    ratio = means.std(0, ddof=1) / np.sqrt(np.square(errors).mean(0))
    assert 0.7 < np.median(ratio) < 1.4


@pytest.mark.parametrize("loss", ["cross-entropy", "squares", "margin"])
def test_many_outputs_are_drawn_for_the_same_expectation(loss):
    """Above 64 outputs: labels, signs on the diagonal, or Lanczos for a loss without known structure."""
    losses = {
        "cross-entropy": (F.cross_entropy, "labels drawn from softmax"),
        "squares": (lambda o, t: (o - F.one_hot(t, o.shape[1])).square().sum(1).mean(), "signs on a diagonal"),
        "margin": (lambda o, t: (o.square().sum(1) + 1).log().mean() + 0.1 * o.sum(1).square().mean(), "lanczos"),
    }
    fn, root = losses[loss]
    program, x, y = make(classes=70, samples=4)
    table = score(program, x, y, "trace", loss=fn, draws=128)
    exact = np.concatenate(list(exact_scores(program, x, y, fn, "trace").values()))
    assert table.facts["root"] == root
    # The spread over draws alone: by how much two halves of them differ.
    np.testing.assert_allclose(flat(table), exact, rtol=0.25)
    assert abs(flat(table).sum() / exact.sum() - 1) < 0.1


@pytest.mark.parametrize("form", FORMS)
def test_chunks_batches_and_single_samples_make_no_difference(form, monkeypatch):
    program, x, y = make()
    whole = score(program, x, y, form)
    monkeypatch.setattr(per_sample, "_CHUNK", 5)
    np.testing.assert_allclose(flat(score(program, x, y, form)), flat(whole), rtol=1e-9)

    def refuse(*args, **kwargs):
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(per_sample, "vmap", refuse)
    single = score(program, x, y, form)
    np.testing.assert_allclose(flat(single), flat(whole), rtol=1e-9)
    assert "no batching rule" in single.facts["one_by_one"]


def test_a_fixed_batch_gives_the_same():
    program, x, y = make(samples=8)

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = program.graph_module

        def forward(self, x):
            return self.net(x.reshape(4, 2, 5, 5))

    fixed = capture(Fixed().eval(), x[:4])
    assert fixed.static_batch is not None
    np.testing.assert_allclose(
        flat(score(fixed, x, y, "trace", size=4)), flat(score(program, x, y, "trace", size=4)), rtol=1e-9
    )


def test_out_of_memory_goes_on_with_smaller_chunks(monkeypatch):
    program, x, y = make()
    whole = score(program, x, y, "trace")
    real = per_sample.vmap

    def vmap(function, **options):
        def limited(inputs, vectors):
            if vectors.shape[1] > 3:
                raise torch.OutOfMemoryError("out of memory")
            return real(function, **options)(inputs, vectors)

        return limited

    monkeypatch.setattr(per_sample, "vmap", vmap)
    table = score(program, x, y, "trace")
    np.testing.assert_allclose(flat(table), flat(whole), rtol=1e-9)
    assert table.facts["samples_a_chunk"] == 3


def test_a_loss_over_pairs_of_samples_is_refused():
    program, x, y = make()
    with pytest.raises(UserError, match="couples the samples"):
        score(program, x, y, "trace", loss=lambda o, t: (o @ o.T).square().mean())


def test_an_unknown_form_is_refused():
    program, x, y = make()
    with pytest.raises(UserError, match="form"):
        score(program, x, y, "diagonal")
