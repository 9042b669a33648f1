"""Scores of Torch-Pruning 1.6.1 on our groups: its importances as released, and one with its bug mended.

Its own dependency graph is not used. Each of our groups is handed to its importances in the form that they read (the
layers of the group, how each is cut, which positions belong to which unit), so that the formulas are its own and the
units are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.passes.labels.groups import Group, Member, Role
from secateur.passes.program import Program

from .setup import LOSS
from .truth import prunable


@dataclass(frozen=True)
class _Item:
    """A layer of a group, as Torch-Pruning's groups hold it: it unpacks to (how it is cut, positions)."""

    dep: Any
    idxs: list[int]
    root_idxs: list[int]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.dep, self.idxs))


def available() -> bool:
    """Whether the package is installed."""
    try:
        import torch_pruning  # noqa: F401
    except ImportError:
        return False
    return True


def taylor(program: Program, images: Tensor, labels: Tensor, *, normalizer: str | None = "mean") -> Sensitivity:
    """GroupTaylorImportance from the gradient of the mean loss.

    Args:
        program: The program; its gradients are overwritten.
        images: Samples.
        labels: Of the samples.
        normalizer: Its default divides by the mean over the group; None leaves scores as they are.
    """
    from torch_pruning.pruner.importance import GroupTaylorImportance

    module = program.clone().module().eval()
    for x, y in zip(images.split(128), labels.split(128), strict=True):
        (LOSS(module(x), y) * (len(y) / len(labels))).backward()
    return _table("torch-pruning taylor", program, module, GroupTaylorImportance(normalizer=normalizer))


def hessian(
    program: Program, images: Tensor, labels: Tensor, *, mended: bool, normalizer: str | None = "mean"
) -> Sensitivity:
    """GroupHessianImportance from the gradients of the samples, one by one as its documentation shows.

    As released, `accumulate_grad` looks for the name of a parameter among keys that are the parameters themselves, so
    that every sample overwrites those before it and only the last one counts.

    Args:
        program: The program.
        images: Samples.
        labels: Of the samples.
        mended: Accumulates over all samples.
        normalizer: As in `taylor`.
    """
    from torch_pruning.pruner.importance import GroupHessianImportance

    class Mended(GroupHessianImportance):
        def accumulate_grad(self, model: nn.Module) -> None:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    self._accu_grad[parameter] = self._accu_grad.get(parameter, 0) + parameter.grad.detach() ** 2
                    self._counter[parameter] = self._counter.get(parameter, 0) + 1

    module = program.clone().module().eval()
    scorer = (Mended if mended else GroupHessianImportance)(normalizer=normalizer)
    scorer.zero_grad()
    for x, y in zip(images.split(1), labels.split(1), strict=True):
        module.zero_grad()
        LOSS(module(x), y).backward()
        scorer.accumulate_grad(module)
    return _table("torch-pruning hessian", program, module, scorer)


def _table(name: str, program: Program, module: nn.Module, importance: Any) -> Sensitivity:
    groups = {}
    for group in prunable(program):
        values = importance(_items(module, group)).detach().double().numpy()
        groups[group.name] = Scores(values, np.zeros(group.width))
    return Sensitivity(name, "score", groups, {"torch": str(torch.__version__)})


def _items(module: nn.Module, group: Group) -> list[_Item]:
    items = []
    for member in group.members:
        path, _, parameter = member.tensor.rpartition(".")
        layer = module.get_submodule(path)
        cut = _cut(layer, member) if parameter == "weight" else None
        if cut is None:
            continue
        order = np.argsort(member.index.reshape(-1), kind="stable")
        units = np.repeat(np.arange(group.width), member.index.shape[1])[order]
        dep = SimpleNamespace(target=SimpleNamespace(module=layer), handler=cut, layer=layer, pruning_fn=cut)
        items.append(_Item(dep, member.index.reshape(-1)[order].tolist(), units.tolist()))
    return items


def _cut(layer: nn.Module, member: Member) -> Any:
    """The function of Torch-Pruning that would cut this member."""
    from torch_pruning.pruner import function

    kind = {_ConvNd: "conv", nn.Linear: "linear", _BatchNorm: "batchnorm"}
    for base, name in kind.items():
        if isinstance(layer, base):
            way = "in" if member.role is Role.CONSUME else "out"
            return getattr(function, f"prune_{name}_{way}_channels", None)
    return None
