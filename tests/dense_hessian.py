"""A tiny network in double precision and its whole Hessian, by brute force: the oracle of the estimators."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from secateur.passes.capture import capture


class Small(nn.Module):
    """Two residually tied convolutions (one group), a third one, smooth activations."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.conv3 = nn.Conv2d(4, 3, 3)
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        x = F.gelu(self.bn1(self.conv1(x)))
        x = x + self.conv2(x)
        return self.fc(torch.tanh(self.conv3(F.gelu(x))).mean((2, 3)))


@functools.cache
def _captured():
    torch.manual_seed(0)
    model = Small().double()
    with torch.no_grad():
        model(3 * torch.randn(64, 2, 5, 5, dtype=torch.float64) + 1)
    return capture(model.eval(), data()[0][:2])


def small_program():
    return _captured().clone()


def data(n=12, seed=0, dtype=torch.float64, classes=3, shape=(2, 5, 5)):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def flat(sensitivity, part="delta_loss"):
    """The scores of all units, or their standard errors, one group after the other."""
    return np.concatenate([getattr(scores, part) for scores in sensitivity.groups.values()])


class Dense:
    """Gradient and Hessian of the mean loss over all weights that produce a unit, as one vector and one matrix."""

    def __init__(self, program, x, y, loss=F.cross_entropy):
        module = program.graph_module.eval()
        self.groups = [g for g in program.groups if g.frozen is None and g.producers]
        names = list(dict.fromkeys(m.tensor for g in self.groups for m in g.producers))
        tensors = [module.get_parameter(name).detach() for name in names]
        self.shapes = {name: t.shape for name, t in zip(names, tensors, strict=True)}
        sizes = [t.numel() for t in tensors]
        self.start = dict(zip(names, np.cumsum([0, *sizes]), strict=False))
        self.weights = torch.cat([t.flatten() for t in tensors])

        def of(vector):
            parts = vector.split(sizes)
            values = {n: p.reshape(self.shapes[n]) for n, p in zip(names, parts, strict=True)}
            return loss(functional_call(module, values, (x,)), y)

        self.gradient = torch.autograd.functional.jacobian(of, self.weights)
        self.hessian = torch.autograd.functional.hessian(of, self.weights)

    def slices(self, group, unit):
        """One 0/1 vector for every producer of a unit: which weights it takes."""
        for member in group.producers:
            shape = self.shapes[member.tensor]
            chosen = torch.zeros(shape, dtype=torch.float64)
            chosen.index_fill_(member.axis, torch.as_tensor(member.index[unit]), 1.0)
            vector = torch.zeros_like(self.weights)
            start = self.start[member.tensor]
            vector[start : start + chosen.numel()] = chosen.flatten()
            yield vector

    def per_unit(self, score):
        """`score(slices)` of every unit, one group after the other."""
        return np.array([float(score(list(self.slices(g, u)))) for g in self.groups for u in g.units])
