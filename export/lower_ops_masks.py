"""Lowering of what masks and positions are made of: logic, triangles, running sums, shifts, norms of vectors."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from .lower_context import INT64_MAX, Lowering, NoLowering, OpLowering, Value, positive_axis
from .node_facts import TensorFact


def _logic(op_type: str) -> OpLowering:
    """`&`, `|`, `^`: logical on booleans, bit by bit on integers; of sizes each is a vector of one element."""

    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        if not isinstance(ctx.facts.nodes.get(node), TensorFact):
            if isinstance(node.meta.get("val"), bool):
                raise NoLowering("conditions on sizes")
            sizes = [ctx.shape_vector(node, [x], part=part) for part, x in (("self", a.self), ("other", a.other))]
            return ctx.emit(node, f"Bitwise{op_type}", sizes)
        dtype = ctx.fact(node).dtype
        inputs = [ctx.operand(node, a.self, dtype, part="self"), ctx.operand(node, a.other, dtype, part="other")]
        return ctx.emit(node, op_type if dtype == torch.bool else f"Bitwise{op_type}", inputs)

    return lower


def _logical(op_type: str) -> OpLowering:
    """`logical_and` and the like: any operand counts as a boolean."""

    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        inputs = [ctx.operand(node, x, torch.bool, part=part) for part, x in (("self", a.self), ("other", a.other))]
        return ctx.emit(node, op_type, inputs)

    return lower


def _triangle(*, upper: bool) -> OpLowering:
    """`aten.tril`, `aten.triu`."""

    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        # onnxruntime has no kernel for booleans.
        fact = ctx.fact(a.self)
        through = torch.int64 if fact.dtype == torch.bool else fact.dtype
        x = ctx.cast(node, ctx.value(a.self), fact.dtype, through, part="number")
        kept = ctx.emit(
            node,
            "Trilu",
            [x, ctx.constant(node, "diagonal", a.diagonal)],
            part="" if through == fact.dtype else "kept",
            upper=int(upper),
        )
        return ctx.cast(node, kept, through, fact.dtype, part="")

    return lower


def cumsum(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.cumsum`."""
    x = ctx.cast(node, ctx.value(a.self), ctx.fact(a.self).dtype, ctx.fact(node).dtype)
    return ctx.emit(node, "CumSum", [x, ctx.constant(node, "axis", a.dim)])


def roll(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.roll`: each axis is cut in two, and the parts change places."""
    fact, x = ctx.fact(a.self), ctx.value(a.self)
    if not a.dims or len(a.dims) != len(a.shifts) or not all(isinstance(shift, int) for shift in a.shifts):
        raise NoLowering("a roll of the flattened tensor, or by symbolic sizes")
    moves = [(positive_axis(dim, fact.rank), shift) for dim, shift in zip(a.dims, a.shifts, strict=True) if shift]
    for position, (axis, shift) in enumerate(moves):
        if fact.dynamic(axis):
            raise NoLowering("a roll along a dynamic axis")
        cut = -shift % fact.shape[axis]
        ends = (("tail", cut, INT64_MAX), ("head", 0, cut))
        parts = [_part(ctx, node, x, axis, start, end, f"{name}{position}") for name, start, end in ends]
        last = position == len(moves) - 1
        x = ctx.emit(node, "Concat", parts, part="" if last else f"rolled{position}", axis=axis)
    return x


def _part(ctx: Lowering, node: fx.Node, x: str, axis: int, start: int, end: int, part: str) -> str:
    bounds = {"start": start, "end": end, "axes": axis}
    inputs = [ctx.constant(node, f"{part}_{name}", [value]) for name, value in bounds.items()]
    return ctx.emit(node, "Slice", [x, *inputs], part=part)


def flip(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.flip`: slices with step -1."""
    axes = [positive_axis(dim, ctx.fact(a.self).rank) for dim in a.dims]
    if not axes:
        return ctx.value(a.self)
    columns = {"start": [-1] * len(axes), "end": [-INT64_MAX] * len(axes), "axes": axes, "steps": [-1] * len(axes)}
    return ctx.emit(node, "Slice", [ctx.value(a.self), *(ctx.constant(node, k, v) for k, v in columns.items())])


def vector_norm(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.linalg_vector_norm` and `aten.norm` of order 1 or 2 along axes."""
    order = getattr(a, "ord", getattr(a, "p", 2))
    dims, fact = getattr(a, "dim", None), ctx.fact(a.self)
    op_type = {1: "ReduceL1", 2: "ReduceL2", None: "ReduceL2"}.get(order)
    if op_type is None or getattr(a, "dtype", None) is not None:
        raise NoLowering(f"a vector norm of order {order}")
    given = list(range(fact.rank)) if dims in (None, []) else [dims] if isinstance(dims, int) else list(dims)
    axes = ctx.constant(node, "axes", sorted(positive_axis(dim, fact.rank) for dim in given))
    return ctx.emit(node, op_type, [ctx.value(a.self), axes], keepdims=int(getattr(a, "keepdim", False)))


def baddbmm(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.baddbmm`: beta * self + alpha * (batch1 @ batch2)."""
    product = ctx.emit(node, "MatMul", [ctx.value(a.batch1), ctx.value(a.batch2)], part="product")
    terms = []
    for value, factor, part in ((product, a.alpha, "alpha"), (ctx.value(a.self), a.beta, "beta")):
        scale = ctx.constant(node, part, factor, np.float32)
        terms.append(value if factor == 1 else ctx.emit(node, "Mul", [value, scale], part=f"times_{part}"))
    return terms[0] if a.beta == 0 else ctx.emit(node, "Add", terms)


def glu(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.glu`: the first half of an axis times the sigmoid of the second."""
    fact = ctx.fact(a.self)
    axis = positive_axis(a.dim, fact.rank)
    half = ctx.constant(node, "sizes", [fact.shape[axis] // 2] * 2)
    left, right = ctx.emit(node, "Split", [ctx.value(a.self), half], part="halves", outputs=2, axis=axis)
    return ctx.emit(node, "Mul", [left, ctx.emit(node, "Sigmoid", [right], part="gate")])


def rms_norm(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.rms_norm` over the last axes."""
    fact = ctx.fact(a.input)
    axes = ctx.constant(node, "axes", list(range(fact.rank - len(a.normalized_shape), fact.rank)))
    x = ctx.value(a.input)
    mean = ctx.emit(node, "ReduceMean", [ctx.emit(node, "Mul", [x, x], part="square"), axes], part="mean", keepdims=1)
    eps = torch.finfo(fact.dtype).eps if a.eps is None else a.eps
    safe = ctx.emit(node, "Add", [mean, ctx.constant(node, "eps", eps, np.float32)], part="safe")
    root = ctx.emit(node, "Sqrt", [safe], part="root")
    if a.weight is None:
        return ctx.emit(node, "Div", [x, root])
    return ctx.emit(node, "Mul", [ctx.emit(node, "Div", [x, root], part="normed"), ctx.value(a.weight)])


def square(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.square`."""
    return ctx.emit(node, "Mul", [ctx.value(a.self), ctx.value(a.self)])


_OPERATORS: Mapping[str, tuple[str, ...]] = {
    "And": ("__and__", "and_", "bitwise_and"),
    "Or": ("__or__", "or_", "bitwise_or"),
    "Xor": ("__xor__", "xor", "bitwise_xor"),
}

OPS: Mapping[str, Any] = {
    **{name: _logic(op_type) for op_type, names in _OPERATORS.items() for name in names},
    **{f"logical_{op_type.lower()}": _logical(op_type) for op_type in _OPERATORS},
    "tril": _triangle(upper=False),
    "triu": _triangle(upper=True),
    "cumsum": cumsum,
    "roll": roll,
    "flip": flip,
    "linalg_vector_norm": vector_norm,
    "norm": vector_norm,
    "baddbmm": baddbmm,
    "glu": glu,
    "rms_norm": rms_norm,
    "square": square,
}
"""Lowering by ATen (or `operator`) name."""
