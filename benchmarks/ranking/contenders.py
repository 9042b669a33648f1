"""What is timed: ways to compute the same probe of the Hessian, and what else ranks.

A contender is set up once on a batch and then takes steps. Peers run as they are; HAP's loop is written anew after a
description of its code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.compress.heal.evaluate import cross_entropy
from secateur.compress.sensitivity.batches import Batch
from secateur.compress.sensitivity.hvp import gradients, product
from secateur.compress.sensitivity.request import Request
from secateur.passes.program import Program

Step = Callable[[], object]


@dataclass(frozen=True)
class Task:
    """A network and a batch.

    Attributes:
        module: The network in evaluation mode, for the peers.
        program: The same network, for us.
        images: Inputs.
        labels: int64 [batch].
    """

    module: nn.Module
    program: Program
    images: Tensor
    labels: Tensor


def gradient(task: Task) -> Step:
    """The gradient of the loss in all weights: the unit that costs are given in."""
    parameters = list(task.module.parameters())

    def step() -> object:
        loss = cross_entropy(task.module(task.images), task.labels)
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    return step


def hap(task: Task) -> Step:
    """A probe of our `hap`: FP32, the gradient's graph built once."""
    return _probes(task, None)


def ehap_bf16(task: Task) -> Step:
    """A probe of our `ehap`: the same under BF16 autocast."""
    return _probes(task, torch.bfloat16)


def pyhessian(task: Task) -> Step:
    """A probe of PyHessian's trace on one batch: FP32, the graph built once, over all parameters, one number."""
    from pyhessian import hessian

    with sdpa_kernel(SDPBackend.MATH):
        estimator = hessian(task.module, cross_entropy, data=(task.images, task.labels), cuda=False)
    return lambda: estimator.trace(maxIter=1, tol=0.0)


def hap_loop_rebuilt(task: Task) -> Step:
    """A probe as HAP's code computes it on several batches: graph rebuilt, a Python loop over layers and channels."""

    def step() -> object:
        weights, found = _hap_graph(task)
        return _hap_probe(weights, found, keep=False)

    return step


def hap_loop(task: Task) -> Step:
    """A probe as HAP's code computes it on one batch: graph built once, a Python loop over layers and channels."""
    weights, found = _hap_graph(task)
    return lambda: _hap_probe(weights, found, keep=True)


CONTENDERS: Mapping[str, Callable[[Task], Step]] = {
    "gradient": gradient,
    "hap (FP32)": hap,
    "ehap (BF16)": ehap_bf16,
    "PyHessian": pyhessian,
    "HAP's loop, graph kept": hap_loop,
    "HAP's loop, graph rebuilt": hap_loop_rebuilt,
}
"""Probes by name."""


def _probes(task: Task, half: torch.dtype | None) -> Step:
    """Our products, over the same weights as HAP's and in one sum a channel; `rank` sums over units instead."""
    module = task.program.module().eval().requires_grad_(False)
    weights = _weights(module)
    for weight in weights:
        weight.requires_grad_(True)
    batch = Batch((task.images,), {}, task.labels, len(task.labels))
    request = Request(task.program, [(task.images, task.labels)], cross_entropy, samples=batch.size)
    _, found = gradients(request, batch, weights, half=half)

    def step() -> list[Tensor]:
        signs = _signs(weights)
        products = product(found, weights, signs)
        return [(v * h).flatten(1).sum(1) for v, h in zip(signs, products, strict=True)]

    return step


def _weights(module: nn.Module) -> list[Tensor]:
    """All weights of convolutions and linear layers."""
    return [m.weight for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def _signs(weights: list[Tensor]) -> list[Tensor]:
    return [torch.randint(0, 2, w.shape, dtype=torch.int8).mul_(2).sub_(1).to(w.dtype) for w in weights]


def _hap_graph(task: Task) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    weights = _weights(task.module)
    with sdpa_kernel(SDPBackend.MATH):
        loss = cross_entropy(task.module(task.images), task.labels)
        return weights, torch.autograd.grad(loss, weights, create_graph=True)


def _hap_probe(weights: list[Tensor], found: tuple[Tensor, ...], keep: bool) -> list[list[float]]:
    signs = [torch.randint_like(w, high=2) * 2 - 1 for w in weights]
    products = torch.autograd.grad(found, weights, grad_outputs=signs, retain_graph=keep)
    return [
        [h[c].flatten().dot(v[c].flatten()).item() for c in range(len(h))] for h, v in zip(products, signs, strict=True)
    ]
