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
