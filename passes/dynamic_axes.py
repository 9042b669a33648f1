"""Axes besides the batch whose length may change between calls: sequence lengths, image sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from ..errors import UserError, did_you_mean

Axes = Mapping[str, tuple[int, ...]]
"""Axes by the name of the argument of forward."""
Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def names_in_call(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the arguments of a call: positional ones by the signature (`xs_0` of `*xs`), then the keywords."""
    names: list[str] = []
    parameters = iter(inspect.signature(forward).parameters.values())
    parameter, first = None, 0
    for position in range(len(args)):
        if parameter is None or parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            parameter, first = next(parameters), position
        many = parameter.kind is inspect.Parameter.VAR_POSITIONAL
        names.append(f"{parameter.name}_{position - first}" if many else parameter.name)
    return (*names, *kwargs)


def names_in_graph(graph: fx.Graph) -> tuple[str, ...]:
    """Names of the arguments of a captured network, in the order of `names_in_call`."""
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen):
        return tuple(codegen.pytree_info.orig_args)
    return tuple(str(node.target) for node in graph.find_nodes(op="placeholder"))


def check_axes(
    dynamic: Mapping[str, Sequence[int]] | None, names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, tuple[int, ...]]:
    """Checks what the user asks for; axes come back counted from the front.

    Raises:
        UserError: No such argument, no such axis, or one that is too short in the examples.
    """
    values = dict(zip(names, [*args, *kwargs.values()], strict=True))
    checked = {}
    for name, asked in (dynamic or {}).items():
        if name not in values:
            raise UserError(
                f"no argument is called {name!r}{did_you_mean(name, values)}",
                where="dynamic",
                hint=f"the example calls the model with: {', '.join(names)}",
            )
        tensors = [leaf for leaf in pytree.tree_leaves(values[name]) if isinstance(leaf, Tensor)]
        found = {axis + tensors[0].ndim if axis < 0 else axis for axis in asked} - {0} if tensors else set()
        for tensor in tensors:
            short = [axis for axis in found if axis >= tensor.ndim or axis < 0 or tensor.shape[axis] < 2]
            if short:
                raise UserError(
                    f"axis {short[0]} of {name!r} cannot change its length",
                    where="dynamic",
                    why=f"the example has the shape {list(tensor.shape)}",
                    hint="name an axis that has at least two elements in the example",
                )
        if found:
            checked[name] = tuple(sorted(found))
    return checked


def dynamic_shapes(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], axes: Axes, batch: int | None
) -> dict[int, Any]:
    """What `torch.export` is told, by the identity of the input tensor.

    Args:
        names: Of the arguments.
        args: Positional arguments.
        kwargs: Keyword arguments.
        axes: Axes besides the batch.
        batch: Size of the batch if it is dynamic, else None.
    """
    told: dict[int, Any] = {}
    for name, value in zip(names, [*args, *kwargs.values()], strict=True):
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                mine = [0] if batch and leaf.ndim and leaf.shape[0] == batch else []
                mine += axes.get(name, ())
                told[id(leaf)] = dict.fromkeys(mine, torch.export.Dim.DYNAMIC) or None
    return told


def other_lengths(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], axes: Axes) -> Inputs:
    """The inputs at other lengths: one shorter (a table of positions may end), or longer where that would leave one."""

    def resized(value: Any, name: str) -> Any:
        def resize(tensor: Tensor) -> Tensor:
            for axis in axes[name]:
                size = tensor.shape[axis]
                other = size - 1 if size > 2 else size + 1
                tensor = tensor.index_select(axis, torch.arange(other, device=tensor.device) % size)
            return tensor

        return pytree.tree_map_only(Tensor, resize, value) if name in axes else value

    if not axes:
        return tuple(args), dict(kwargs)
    values = [resized(value, name) for name, value in zip(names, [*args, *kwargs.values()], strict=True)]
    return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))
