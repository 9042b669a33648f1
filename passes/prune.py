"""Physical rewrite: removes units from every tensor, layer and constant that they touch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..errors import UserError
from .functionalise import free_views
from .labels.analysis import Analysis
from .labels.flow import canonical_names, shape_of
from .labels.resize import Resize
from .labels.rule import find_rule
from .labels.selection import Keep, check_keep, kept_positions
from .program import Program
from .shapes import propagate


def apply(program: Program, keep: Keep, *, analysis: Analysis | None = None, allow_unchanged: bool = False) -> Program:
    """The program with fewer units: smaller tensors, layers and constants; a function of its arguments alone.

    Args:
        program: The program; not changed.
        keep: Kept units by group name; groups that are not named are kept whole.
        analysis: Analysis of the program, if made with other rules than the built-in ones.
        allow_unchanged: Whether keeping everything is fine.

    Returns:
        A new program. Parameters stay parameters (and shared ones shared), buffers buffers.

    Raises:
        UserError: An unknown or frozen group, a wrong index, a group that would be emptied, or nothing to remove.
    """
    analysis = analysis or program.analysis
    kept = check_keep(analysis, keep)
    if not kept and not allow_unchanged:
        raise UserError(
            "nothing would be removed", why="every group is kept whole", hint="name fewer units for a group"
        )
    smaller = program.clone(step="apply")
    if not kept:
        return smaller
    slice_tensors(smaller.graph_module, kept_positions(analysis, kept))
    resize = Resize(smaller.graph_module, analysis.values, analysis.removed_ids(kept))
    nodes = [node for node in smaller.graph.nodes if node.name in analysis.values]
    for node in nodes:
        if node.op in ("call_module", "call_function") and resize.changed(node):
            module = resize.module(node) if node.op == "call_module" else None
            rule = find_rule(analysis.rules, node, module)
            if rule is not None and rule.rewrite is not None:
                rule.rewrite(resize, node)
    free_views(smaller.graph)
    smaller.graph.lint()
    smaller.graph_module.recompile()
    propagate(smaller)
    alive = set(smaller.graph.nodes)
    _check_shapes([node for node in nodes if node in alive], resize)
    return smaller


def slice_tensors(graph_module: nn.Module, positions: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Keeps only the given positions of tensors, in place; whoever shares a tensor gets the same smaller one."""
    names = canonical_names(graph_module)
    smaller: dict[str, Tensor] = {}
    for module in graph_module.modules():
        for store in (module._parameters, module._buffers):
            for attribute, tensor in store.items():
                if tensor is None or (name := names[id(tensor)]) not in positions:
                    continue
                if name not in smaller:
                    smaller[name] = sliced(tensor, positions[name])
                store[attribute] = smaller[name]  # type: ignore[assignment]


def sliced(tensor: Tensor, positions: Mapping[int, np.ndarray]) -> Tensor:
    """The given positions of a tensor by axis; a parameter stays a parameter."""
    out = tensor.detach()
    for axis, index in positions.items():
        out = out.index_select(axis, torch.from_numpy(index).to(out.device))
    return nn.Parameter(out, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else out


def _check_shapes(nodes: list[fx.Node], resize: Resize) -> None:
    """What the rules foresaw and what the rewritten graph computes must agree; a difference is a bug in a rule."""
    for node in nodes:
        if isinstance(node.meta.get("val"), Tensor) and shape_of(node) != resize.shape(node):
            raise AssertionError(f"{node.name} has shape {shape_of(node)}, its rule says {resize.shape(node)}")
