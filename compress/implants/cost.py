"""What implants save: exact, without rewriting anything."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from ...errors import Refused
from ...passes.implant import replaced_layers
from ...passes.implant_form import Implant, Implants, weights_of
from ...passes.labels.flow import canonical_names, shape_of
from ...passes.labels.widths import axis_terms
from ...passes.program import Program
from ..cost.model import Cost


def implants_save(program: Program, widths: Mapping[str, int], implants: Implants, gone: Collection[str] = ()) -> Cost:
    """What a program costs less if these units have stand-ins instead of their own filters.

    Args:
        program: The program before anything is removed.
        widths: Kept units by group name, the implanted ones among them; groups that are missing keep all.
        implants: Stand-ins by group name; ones that may not be refused.
        gone: Module paths of layers that are dropped anyway.

    Returns:
        Parameters and multiply-accumulates of one sample; negative if the stand-ins cost more.
    """
    terms = axis_terms(program)
    names = canonical_names(program.graph_module)
    kept = {group.name: widths.get(group.name, group.width) for group in program.groups}
    groups = {group.name: group for group in program.groups}
    rows: dict[str, int] = {}
    forms: dict[str, tuple[str, int | None]] = {}
    for name, chosen in implants.items():
        found = replaced_layers(program, groups[name], chosen)
        assert not isinstance(found, Refused)
        for path, filters in found.items():
            rows[path] = rows.get(path, 0) + len(filters)
            rank = forms.get(path, ("", None))[1]
            forms[path] = (chosen.form, chosen.rank if rank is None else rank + (chosen.rank or 0))
    params = macs = 0
    for node in program.graph.find_nodes(op="call_module"):
        path = str(node.target)
        if path in rows and path not in gone:
            layer: Any = program.graph_module.get_submodule(path)
            inputs = terms[names[id(layer.weight)]][1].width(kept)
            shape = (rows[path], inputs, *layer.weight.shape[2:])
            less, fewer = saved_by(node, layer, shape, *forms[path])
            params, macs = params + less, macs + fewer
    return Cost(params, macs // batch_size(program))


def filters_of(program: Program, widths: Mapping[str, int], name: str, chosen: Implant) -> list[tuple[int, ...]]:
    """Shapes [n, in, k…] of the filters that an implant replaces, one for each layer that computes the group.

    Args:
        program: The program before anything is removed.
        widths: Kept units by group name; groups that are missing keep all.
        name: Name of the group.
        chosen: The implant; its rank does not matter.
    """
    (group,) = [group for group in program.groups if group.name == name]
    kept = {group.name: widths.get(group.name, group.width) for group in program.groups}
    found = replaced_layers(program, group, chosen)
    terms, names = axis_terms(program), canonical_names(program.graph_module)
    shapes = []
    for path, filters in ({} if isinstance(found, Refused) else found).items():
        weight = program.graph_module.get_submodule(path).weight
        assert isinstance(weight, Tensor)
        shapes.append((len(filters), terms[names[id(weight)]][1].width(kept), *weight.shape[2:]))
    return shapes


def saved_by(node: fx.Node, layer: nn.Module, shape: Sequence[int], form: str, rank: int | None) -> tuple[int, int]:
    """Weights, and multiply-accumulates of the example batch, that a stand-in has less than the filters.

    Args:
        node: Calls the layer.
        layer: The layer.
        shape: [n, in, k…] of the filters that are replaced.
        form: Of the stand-in.
        rank: Its rank, if it has one.
    """
    if form == "center":
        return 0, 0
    fewer = prod(shape) - weights_of(shape, form, rank)
    out = _positions(node, layer)
    if form in ("pointwise", "low-rank"):
        return fewer, fewer * prod(out)
    assert isinstance(layer, _ConvNd) and rank is not None
    n, inputs, *kernel = shape
    before = _positions(node.all_input_nodes[0], layer)
    if form == "separable":
        r = min(rank, inputs * kernel[0], n * kernel[1])
        # The first of the two layers has the stride of the first axis only.
        middle = prod((*out[:-1], before[-1]))
        cost = r * inputs * kernel[0] * middle + n * r * kernel[1] * prod(out)
    else:
        first, last = min(rank, inputs), min(rank, n)
        cost = inputs * first * prod(before) + (first * last * prod(kernel) + n * last) * prod(out)
    return fewer, prod(shape) * prod(out) - cost


def _positions(node: fx.Node, layer: nn.Module) -> tuple[int, ...]:
    """Sizes of the axes of a value beside that of its channels, the batch among them."""
    shape = shape_of(node)
    channel = len(shape) - (len(layer.kernel_size) + 1 if isinstance(layer, _ConvNd) else 1)
    return (*shape[:channel], *shape[channel + 1 :])


def batch_size(program: Program) -> int:
    """Samples in the example inputs."""
    leaves = pytree.tree_leaves((program.example_args, dict(program.example_kwargs)))
    return next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0]), 1)
