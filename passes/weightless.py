"""Capture without weights: the structure of a model whose parameters are on the meta device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import UserError
from .capture import _capture_graph, _Examples, _prepare, _split
from .dynamic_axes import names_in_call
from .program import Program
from .shapes import propagate


def capture_structure(model: nn.Module, example_inputs: Any) -> Program:
    """Captures a model made under `torch.device("meta")`: its graph, groups and costs, with no memory for weights.

    Nothing is computed, so what the graph computes is not compared with the model.

    Args:
        model: The network; all parameters and buffers on the meta device.
        example_inputs: As for `capture`; only the shapes and types count.

    Returns:
        A program that can be analysed, but not run.

    Raises:
        UserError: A parameter has memory.
        UnsupportedError: No graph can hold the model.
    """
    real = [name for name, tensor in [*model.named_parameters(), *model.named_buffers()] if not tensor.is_meta]
    if real:
        raise UserError(
            "the model has weights in memory",
            where=real[0],
            hint='make it inside `with torch.device("meta"):`, or use capture',
        )
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), _split(example_inputs, None))
    source = _prepare(model)
    examples = _Examples(names_in_call(source.forward, args, kwargs), args, kwargs)
    with torch.device("meta"):  # tensors that forward makes
        graph_module, static_batch = _capture_graph(source, examples, {})
        propagate(graph_module, args, kwargs)
    return Program(graph_module, args, kwargs, static_batch, ("capture",))
