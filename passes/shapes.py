"""Shapes by fake tensors: what every node of a program computes, without computing it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from .program import Program


class _Recorder(fx.Interpreter):
    """Runs a graph on fake tensors and keeps the value of every node."""

    def __init__(self, graph_module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.mode = mode
        self.values: dict[fx.Node, Any] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A fake for a parameter or buffer: an in-place operation on the real one would really write."""
        value = super().get_attr(target, args, kwargs)
        return self.mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        """Evaluates a node."""
        self.values[n] = super().run_node(n)
        return self.values[n]


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; every submodule gets its own flag back after it."""
    flags = [(child, child.training) for child in module.modules()]
    # Not `module.eval()`: the modules of torch.export refuse it.
    for child, _ in flags:
        child.training = False
    try:
        yield
    finally:
        for child, training in flags:
            child.training = training


def flatten_inputs(graph_module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The values of the placeholders for a call with `args` and `kwargs`."""
    info = getattr(graph_module.graph._codegen, "pytree_info", None)
    if info is None:
        return [*args, *kwargs.values()]
    return fx_pytree.tree_flatten_spec((tuple(args), dict(kwargs)), info.in_spec)


def values_of(
    graph_module: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> dict[fx.Node, Any]:
    """What every node computes in eval mode: fake tensors at concrete sizes, and numbers for symbolic sizes.

    Raises:
        Exception: Whatever an operation raises when shapes do not fit.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    inputs = [
        mode.from_tensor(value, static_shapes=True) if isinstance(value, Tensor) else value
        for value in flatten_inputs(graph_module, args, kwargs or {})
    ]
    recorder = _Recorder(graph_module, mode)
    with eval_mode(graph_module), mode, torch.no_grad():
        recorder.run(*inputs, enable_io_processing=False)
    return recorder.values


def propagate(
    network: Program | fx.GraphModule, args: tuple[Any, ...] | None = None, kwargs: Mapping[str, Any] | None = None
) -> None:
    """Sets `node.meta["val"]` of every node, in place. To be called after every rewrite.

    Args:
        network: A program, or its graph module.
        args: Positional inputs that give the sizes; a program's own examples if left out.
        kwargs: Keyword inputs.
    """
    if isinstance(network, Program):
        if args is None:
            args, kwargs = network.example_args, network.example_kwargs
        network = network.graph_module
    for node, value in values_of(network, args or (), kwargs).items():
        node.meta["val"] = value


def batch_size(args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> int | None:
    """Length of axis 0 of the first tensor that has one; None if there is no such tensor."""
    leaves = pytree.tree_leaves((args, dict(kwargs or {})))
    return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim > 0), None)


def resize_batch(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs with another batch size: every tensor that has the batch in axis 0 is repeated or cut."""
    old = batch_size(args, kwargs)

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != old:
            return leaf
        return leaf[torch.arange(batch, device=leaf.device) % leaf.shape[0]]

    return pytree.tree_map(resize, (tuple(args), dict(kwargs)))
