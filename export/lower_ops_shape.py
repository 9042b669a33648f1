"""Lowering of operations that move or make elements without computing on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from .lower_context import INT64_MAX, Lowering, NoLowering, OpLowering, Value, numpy_dtype, positive_axis
from .node_facts import TensorFact


def alias(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """No operation, or a change of type only (`clone`, `contiguous`, `to`, ...)."""
    x = a.self if hasattr(a, "self") else a.input
    return ctx.cast(node, ctx.value(x), ctx.fact(x).dtype, ctx.fact(node).dtype, part="")


def sym_size(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.sym_size.int`: a vector of one element."""
    axis = positive_axis(a.dim, ctx.fact(a.self).rank)
    return ctx.emit(node, "Shape", [ctx.value(a.self)], start=axis, end=axis + 1)


def reshape(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.view`, `aten.reshape`."""
    sizes = getattr(a, "size", None)
    return _reshape(ctx, node, a.self, a.shape if sizes is None else sizes)


def flatten(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.flatten`, `aten.unflatten`: sizes are known from the facts."""
    return _reshape(ctx, node, a.self, None)


def _reshape(ctx: Lowering, node: fx.Node, x: Any, sizes: Sequence[Any] | None) -> str:
    """Reshape with a constant shape where one exists.

    A dynamic dimension becomes 0 (copied from the input) where the input has the same one on the same axis, or -1 if it
    is the only other; a shape with more of them is computed at run time from the symbolic sizes.
    """
    have, want = ctx.fact(x), ctx.fact(node)
    if want.rank == 2 and have.rank >= 2 and have.pair(0) == want.pair(0) and 0 not in want.shape:
        return ctx.emit(node, "Flatten", [ctx.value(x)], axis=1)
    shape: list[Any] = []
    for axis in range(want.rank):
        given = sizes[axis] if sizes is not None else None
        if not want.dynamic(axis) and not isinstance(given, fx.Node):
            shape.append(want.shape[axis])
        elif axis < have.rank and have.pair(axis) == want.pair(axis):
            shape.append(0)
        elif -1 not in shape:
            shape.append(-1)
        elif isinstance(given, fx.Node):
            shape.append(given)
        else:
            raise NoLowering("a reshape with two unknown sizes")
    return ctx.emit(node, "Reshape", [ctx.value(x), ctx.shape_vector(node, shape)])


def permute(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.permute`."""
    rank = ctx.fact(a.self).rank
    return ctx.emit(node, "Transpose", [ctx.value(a.self)], perm=[positive_axis(d, rank) for d in a.dims])


def transpose(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.transpose`, `aten.t`, `aten.mT`: two axes change places."""
    rank = ctx.fact(a.self).rank
    if rank < 2:
        return ctx.value(a.self)
    first = positive_axis(getattr(a, "dim0", -2), rank)
    second = positive_axis(getattr(a, "dim1", -1), rank)
    perm = list(range(rank))
    perm[first], perm[second] = second, first
    return ctx.emit(node, "Transpose", [ctx.value(a.self)], perm=perm)


def unsqueeze(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.unsqueeze`."""
    return ctx.emit(node, "Unsqueeze", [ctx.value(a.self), ctx.constant(node, "axes", [a.dim])])


def squeeze(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.squeeze`: axes of size 1, all or the given ones."""
    fact = ctx.fact(a.self)
    dims = getattr(a, "dim", None)
    wanted = range(fact.rank) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = [axis for axis in (positive_axis(d, fact.rank) for d in wanted) if fact.pair(axis) == (1, 1)]
    if not axes:
        return ctx.value(a.self)
    return ctx.emit(node, "Squeeze", [ctx.value(a.self), ctx.constant(node, "axes", axes)])


def expand(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.expand`: ONNX keeps an axis that is asked to have size 1."""
    have, want = ctx.fact(a.self), ctx.fact(node)
    lead = want.rank - have.rank
    shape: list[Any] = []
    for axis, given in enumerate(a.size):
        if axis >= lead and have.pair(axis - lead) == want.pair(axis):
            shape.append(1)
        elif not want.dynamic(axis) and not isinstance(given, fx.Node):
            shape.append(want.shape[axis])
        else:
            shape.append(given)
    return ctx.emit(node, "Expand", [ctx.value(a.self), ctx.shape_vector(node, shape)])


def expand_as(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.expand_as`."""
    shape = ctx.emit(node, "Shape", [ctx.value(a.other)], part="shape")
    return ctx.emit(node, "Expand", [ctx.value(a.self), shape])


def repeat(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.repeat`."""
    x, lead = ctx.value(a.self), len(a.repeats) - ctx.fact(a.self).rank
    if lead:
        x = ctx.emit(node, "Unsqueeze", [x, ctx.constant(node, "axes", list(range(lead)))], part="lead")
    return ctx.emit(node, "Tile", [x, ctx.shape_vector(node, list(a.repeats), part="repeats")])


def slice_(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.slice`; one that takes everything is no operation."""
    start, end = 0 if a.start is None else a.start, INT64_MAX if a.end is None else a.end
    fact, axis = ctx.fact(a.self), a.dim
    if start == 0 and a.step == 1 and isinstance(end, int) and ctx.fact(node).pair(axis) == fact.pair(axis):
        return ctx.value(a.self)
    inputs = [
        ctx.value(a.self),
        ctx.shape_vector(node, [start], part="start"),
        ctx.shape_vector(node, [end], part="end"),
        ctx.constant(node, "axes", [axis]),
        ctx.constant(node, "steps", [a.step]),
    ]
    return ctx.emit(node, "Slice", inputs)


def select(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.select`: one index of an axis."""
    if not isinstance(a.index, int):
        raise NoLowering("selection by a symbolic index")
    return ctx.emit(node, "Gather", [ctx.value(a.self), ctx.constant(node, "index", a.index)], axis=a.dim)


def split(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.split`, `split_with_sizes`, `chunk`: the sizes are known from the facts."""
    return _split(ctx, node, a.self, a.dim, part="")


def _split(ctx: Lowering, node: fx.Node, x: Any, dim: int, *, part: str) -> tuple[str, ...]:
    facts = ctx.facts.nodes[node]
    if not isinstance(facts, tuple) or not all(isinstance(f, TensorFact) for f in facts):
        raise NoLowering("a split with an unknown number of parts")
    axis = positive_axis(dim, ctx.fact(x).rank)
    sizes = [f.pair(axis) for f in facts if isinstance(f, TensorFact)]
    if any(first != second for first, second in sizes):
        raise NoLowering("a split of the batch")
    vector = ctx.constant(node, "sizes", [first for first, _ in sizes])
    if len(sizes) == 1:
        return (ctx.value(x),)
    return ctx.emit(node, "Split", [ctx.value(x), vector], part=part, outputs=len(sizes), axis=axis)


def unbind(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.unbind`: one Gather for each index."""
    fact = ctx.fact(a.self)
    if fact.dynamic(a.dim):
        raise NoLowering("unbind of the batch")
    return tuple(
        ctx.emit(node, "Gather", [ctx.value(a.self), ctx.constant(node, f"index{i}", i)], part=str(i), axis=a.dim)
        for i in range(fact.shape[a.dim])
    )


def getitem(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`operator.getitem` of an operation with several results."""
    values = ctx.env[a.self]
    if not isinstance(values, tuple) or not isinstance(a.other, int):
        raise NoLowering("indexing of something other than several results")
    if values[a.other] is None:
        raise NoLowering(f"result {a.other} of {a.self.name}")
    return values[a.other]


def cat(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.cat`."""
    want = ctx.fact(node)
    kept = [(i, t) for i, t in enumerate(a.tensors) if ctx.fact(t).shape != (0,)]
    parts = [ctx.operand(node, t, want.dtype, part=f"in{i}") for i, t in kept]
    return ctx.emit(node, "Concat", parts, axis=positive_axis(a.dim, want.rank))


def stack(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.stack`."""
    axis = positive_axis(a.dim, ctx.fact(node).rank)
    axes = ctx.constant(node, "axes", [axis])
    parts = [ctx.emit(node, "Unsqueeze", [ctx.value(t), axes], part=f"in{i}") for i, t in enumerate(a.tensors)]
    return ctx.emit(node, "Concat", parts, axis=axis)


def onnx_pads(pad: Sequence[int], rank: int) -> list[int]:
    """Torch's pads (last axis first, pairs) in ONNX order (begins of all axes, then ends)."""
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(pad) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = pad[2 * i], pad[2 * i + 1]
    return begins + ends


def pad(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.constant_pad_nd`, `aten.pad`."""
    if not all(isinstance(p, int) for p in a.pad):
        raise NoLowering("padding by symbolic sizes")
    fact = ctx.fact(node)
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[
        getattr(a, "mode", "constant")
    ]
    inputs = [ctx.value(a.self), ctx.constant(node, "pads", onnx_pads(a.pad, fact.rank))]
    if mode == "constant":
        inputs.append(ctx.constant(node, "value", a.value or 0, numpy_dtype(fact.dtype)))
    return ctx.emit(node, "Pad", inputs, mode=mode)


def index_select(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.index_select`."""
    return ctx.emit(node, "Gather", [ctx.value(a.self), ctx.value(a.index)], axis=a.dim)


def gather(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.gather`."""
    return ctx.emit(node, "GatherElements", [ctx.value(a.self), ctx.value(a.index)], axis=a.dim)


def index(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.index` by tensors of integers: one is a Gather, several broadcast together and are a GatherND."""
    tensors = [(axis, t) for axis, t in enumerate(a.indices) if t is not None]
    if not all(ctx.fact(t).dtype in (torch.int64, torch.int32) for _, t in tensors):
        raise NoLowering("indexing by a mask")
    if len(tensors) == 1:
        axis, positions = tensors[0]
        return ctx.emit(node, "Gather", [ctx.value(a.self), ctx.value(positions)], axis=axis)
    rank, axes = ctx.fact(a.self).rank, [axis for axis, _ in tensors]
    others = [axis for axis in range(rank) if axis not in axes]
    values = [ctx.cast(node, ctx.value(t), ctx.fact(t).dtype, torch.int64, part=f"index{i}") for i, t in tensors]
    together = values[0]
    for axis, value in zip(axes[1:], values[1:], strict=True):
        together = ctx.emit(node, "Add", [together, value], part=f"broadcast{axis}")
    shape = ctx.emit(node, "Shape", [together], part="shape")
    last = ctx.constant(node, "last", [-1])
    columns = []
    for axis, value in zip(axes, values, strict=True):
        full = ctx.emit(node, "Expand", [value, shape], part=f"full{axis}")
        columns.append(ctx.emit(node, "Unsqueeze", [full, last], part=f"column{axis}"))
    positions = ctx.emit(node, "Concat", columns, part="positions", axis=-1)
    x = ctx.value(a.self)
    if axes != list(range(len(axes))):
        x = ctx.emit(node, "Transpose", [x], part="front", perm=[*axes, *others])
    # Torch puts the axes of the positions where the first indexed axis was, if those are neighbours; else in front.
    before = axes[0] if axes == list(range(axes[0], axes[0] + len(axes))) else 0
    if not before:
        return ctx.emit(node, "GatherND", [x, positions])
    taken = ctx.emit(node, "GatherND", [x, positions], part="taken")
    wide = ctx.fact(node).rank - len(others)
    perm = [*range(wide, wide + before), *range(wide), *range(wide + before, ctx.fact(node).rank)]
    return ctx.emit(node, "Transpose", [taken], perm=perm)


def filled(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.full`, `zeros`, `ones`, `new_*`, `*_like`."""
    name = str(node.target)
    value = a.fill_value if hasattr(a, "fill_value") else float("ones" in name)
    if isinstance(value, fx.Node):
        raise NoLowering("filling with a tensor")
    want = ctx.fact(node)
    element = np.asarray([value]).astype(numpy_dtype(want.dtype))
    if want.static:
        return ctx.builder.constant(node.name, np.broadcast_to(element[0], want.shape))
    if "like" in name:
        shape = ctx.emit(node, "Shape", [ctx.value(a.self)], part="shape")
    else:
        shape = ctx.shape_vector(node, list(a.size))
    return ctx.emit(node, "Expand", [ctx.builder.constant(f"{node.name}/value", element), shape])


def arange(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.arange` over a symbolic range."""
    want = ctx.fact(node)
    start, end, step = getattr(a, "start", 0), a.end, getattr(a, "step", 1)
    bounds = [("start", start), ("end", end), ("step", step)]
    return ctx.emit(node, "Range", [ctx.operand(node, v, want.dtype, part=part) for part, v in bounds])


OPS: Mapping[str, OpLowering] = {
    **dict.fromkeys(
        ("clone", "contiguous", "alias", "detach", "lift_fresh", "lift_fresh_copy", "to", "_to_copy", "type_as"), alias
    ),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout"), alias),
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), reshape),
    **dict.fromkeys(("flatten", "unflatten"), flatten),
    **dict.fromkeys(("transpose", "t", "mT", "swapaxes"), transpose),
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), split),
    **dict.fromkeys(("constant_pad_nd", "pad"), pad),
    **dict.fromkeys(("full", "zeros", "ones", "new_full", "new_zeros", "new_ones"), filled),
    **dict.fromkeys(("full_like", "zeros_like", "ones_like"), filled),
    "sym_size": sym_size,
    "permute": permute,
    "unsqueeze": unsqueeze,
    "squeeze": squeeze,
    "expand": expand,
    "expand_as": expand_as,
    "repeat": repeat,
    "slice": slice_,
    "select": select,
    "unbind": unbind,
    "getitem": getitem,
    "cat": cat,
    "stack": stack,
    "index_select": index_select,
    "gather": gather,
    "index": index,
    "arange": arange,
}
"""Lowering by ATen (or `operator`) name."""
