"""The oracle of every label rule: removing units physically computes what silencing them at full size computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.passes.labels.flow import canonical_names
from secateur.passes.labels.selection import check_keep, kept_positions
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.prune import apply, sliced


def outputs(program: Program, inputs: Any) -> list[Tensor]:
    """The tensors that a program returns for positional (tuple) or keyword (dict) inputs."""
    module = program.module()
    out = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def gradients(program: Program, inputs: Any) -> dict[str, Tensor | None]:
    """Gradient of a fixed random projection of the outputs by every parameter."""
    module = program.module()
    names = canonical_names(module)
    generator = torch.Generator().manual_seed(3)
    out = [o for o in outputs(program, inputs) if o.requires_grad]
    loss = sum((o * torch.randn(o.shape, generator=generator, dtype=o.dtype)).sum() for o in out)
    parameters = [p for p in module.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)  # type: ignore[arg-type]
    return {names[id(p)]: g for p, g in zip(parameters, found, strict=True)}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Checks equal shapes, and a difference of at most `tolerance` times the largest magnitude."""
    assert actual.shape == expected.shape, what
    if expected.numel():
        scale = max(float(expected.detach().abs().max()), 1e-3)
        error = float((actual - expected).detach().abs().max()) / scale
        assert error <= tolerance, f"{what}: relative error {error:.1e}"


def assert_same_function(
    program: Program, keep: Mapping[str, Sequence[int]], batches: Iterable[Any], tolerance: float = 1e-5
) -> Program:
    """Checks that `apply` and `mask` agree, in outputs and in gradients of what stays; returns the smaller program."""
    analysis = program.analysis
    smaller, silenced = apply(program, keep), mask(program, keep)
    positions = kept_positions(analysis, check_keep(analysis, keep))
    for inputs in batches:
        for actual, expected in zip(outputs(smaller, inputs), outputs(silenced, inputs), strict=True):
            assert_close(actual, expected, tolerance, "output")
        small, full = gradients(smaller, inputs), gradients(silenced, inputs)
        assert small.keys() == full.keys()
        for name, gradient in full.items():
            mine = small[name]
            assert (mine is None) == (gradient is None), name
            if mine is not None and gradient is not None:
                assert_close(mine, sliced(gradient, positions.get(name, {})), tolerance, f"gradient of {name}")
    return smaller
