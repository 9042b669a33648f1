"""Lowering of arithmetic: pointwise functions, reductions, products of matrices, attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from .lower_context import Lowering, NoLowering, OpLowering, Value, positive_axis
from .lower_ops_pool import global_average
from .node_facts import TensorFact


def _unary(op_type: str, **attributes: Any) -> OpLowering:
    """An operation with one tensor and constant attributes."""

    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        return ctx.emit(node, op_type, [ctx.value(a.self)], **attributes)

    return lower


def silu(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """SiLU, `x * sigmoid(x)`."""
    x = ctx.value(a.self)
    return ctx.emit(node, "Mul", [x, ctx.emit(node, "Sigmoid", [x], part="gate")])


def gelu(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """Exact or tanh-approximated GELU."""
    return ctx.emit(node, "Gelu", [ctx.value(a.self)], approximate=a.approximate)


def leaky_relu(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.leaky_relu`."""
    return ctx.emit(node, "LeakyRelu", [ctx.value(a.self)], alpha=float(a.negative_slope))


def elu(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.elu` without extra scales."""
    if a.scale != 1 or a.input_scale != 1:
        raise NoLowering("elu with scales")
    return ctx.emit(node, "Elu", [ctx.value(a.self)], alpha=float(a.alpha))


def softplus(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.softplus` with beta 1."""
    if a.beta != 1:
        raise NoLowering("softplus with beta")
    return ctx.emit(node, "Softplus", [ctx.value(a.self)])


def clip(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """Clamp to constant bounds; `aten.clamp`, `clamp_min`, `clamp_max`, `hardtanh`, `relu6`."""
    low = getattr(a, "min_val", getattr(a, "min", None))
    high = getattr(a, "max_val", getattr(a, "max", None))
    if hasattr(node.target, "_schema") and "relu6" in str(node.target):
        low, high = 0.0, 6.0
    if isinstance(low, fx.Node) or isinstance(high, fx.Node):
        raise NoLowering("clamp to tensors")
    dtype = ctx.fact(node).dtype
    bounds = ["" if b is None else ctx.operand(node, b, dtype, part=p) for p, b in (("low", low), ("high", high))]
    return ctx.emit(node, "Clip", [ctx.value(a.self), *bounds])


def _common_type(ctx: Lowering, left: Any, right: Any) -> torch.dtype:
    """Type in which torch compares two tensors, or a tensor with a number."""

    def sample(value: Any) -> Any:
        fact = ctx.facts.nodes.get(value) if isinstance(value, fx.Node) else value
        return torch.empty((1,) * fact.rank, dtype=fact.dtype) if isinstance(fact, TensorFact) else fact

    return torch.result_type(sample(left), sample(right))


def _scaled(ctx: Lowering, node: fx.Node, argument: Any, alpha: Any, dtype: torch.dtype) -> str:
    value = ctx.operand(node, argument, dtype, part="second")
    if alpha in (None, 1):
        return value
    return ctx.emit(node, "Mul", [value, ctx.operand(node, alpha, dtype, part="alpha")], part="scaled")


def _binary(op_type: str, *, swap: bool = False) -> OpLowering:
    """An arithmetic operation of two tensors, or of a tensor and a number; torch's `alpha` scales the second."""

    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        if not isinstance(ctx.facts.nodes.get(node), TensorFact):
            return _symbolic(ctx, node, op_type, a)
        dtype = ctx.fact(node).dtype
        first, second = (a.other, a.self) if swap else (a.self, a.other)
        left = ctx.operand(node, first, dtype, part="first")
        return ctx.emit(node, op_type, [left, _scaled(ctx, node, second, getattr(a, "alpha", None), dtype)])

    return lower


def _symbolic(ctx: Lowering, node: fx.Node, op_type: str, a: SimpleNamespace) -> Value:
    """Integer arithmetic on sizes; each is a vector of one element."""
    operands = [
        ctx.value(v) if isinstance(v, fx.Node) else ctx.constant(node, part, [v])
        for part, v in (("self", a.self), ("other", a.other))
    ]
    if not all(isinstance(v, int | fx.Node) for v in (a.self, a.other)) or op_type not in ("Add", "Sub", "Mul", "Mod"):
        raise NoLowering("size arithmetic other than +, -, *, //, %")
    return ctx.emit(node, op_type, operands)


def divide(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.div` with its rounding modes (floating point)."""
    dtype = ctx.fact(node).dtype
    mode = getattr(a, "rounding_mode", None)
    if mode is not None and not dtype.is_floating_point:
        raise NoLowering("integer division")
    inputs = [ctx.operand(node, a.self, dtype, part="self"), ctx.operand(node, a.other, dtype, part="other")]
    if mode is None:
        return ctx.emit(node, "Div", inputs)
    quotient = ctx.emit(node, "Div", inputs, part="quotient")
    if mode == "floor":
        return ctx.emit(node, "Floor", [quotient])
    whole = ctx.emit(node, "Floor", [ctx.emit(node, "Abs", [quotient], part="abs")], part="floor")
    return ctx.emit(node, "Mul", [whole, ctx.emit(node, "Sign", [quotient], part="sign")])


def floor_divide(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`//` on sizes (never negative, so that truncation is floor)."""
    if isinstance(ctx.facts.nodes.get(node), TensorFact):
        raise NoLowering("floor division of tensors")
    operands = [
        ctx.value(v) if isinstance(v, fx.Node) else ctx.constant(node, part, [v])
        for part, v in (("self", a.self), ("other", a.other))
    ]
    return ctx.emit(node, "Div", operands)


def power(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.pow`; a square is one multiplication."""
    dtype = ctx.fact(node).dtype
    exponent = getattr(a, "exponent", None)
    base = ctx.operand(node, a.self, dtype, part="self")
    if exponent == 2:
        return ctx.emit(node, "Mul", [base, base])
    return ctx.emit(node, "Pow", [base, ctx.operand(node, exponent, dtype, part="exponent")])


def rsqrt(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """1 / sqrt(x)."""
    return ctx.emit(node, "Reciprocal", [ctx.emit(node, "Sqrt", [ctx.value(a.self)], part="sqrt")])


def _compare(op_type: str, *, negate: bool = False) -> OpLowering:
    """A comparison of two tensors, or of a tensor and a number."""

    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        dtype = _common_type(ctx, a.self, a.other)
        inputs = [ctx.operand(node, a.self, dtype, part="self"), ctx.operand(node, a.other, dtype, part="other")]
        if not negate:
            return ctx.emit(node, op_type, inputs)
        return ctx.emit(node, "Not", [ctx.emit(node, op_type, inputs, part="equal")])

    return lower


def where(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.where`."""
    dtype = ctx.fact(node).dtype
    choices = [ctx.operand(node, a.self, dtype, part="self"), ctx.operand(node, a.other, dtype, part="other")]
    return ctx.emit(node, "Where", [ctx.value(a.condition), *choices])


def masked_fill(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.masked_fill`."""
    fill = ctx.operand(node, a.value, ctx.fact(node).dtype, part="fill")
    return ctx.emit(node, "Where", [ctx.value(a.mask), fill, ctx.value(a.self)])


def _axes(ctx: Lowering, a: SimpleNamespace) -> list[int]:
    """Reduced axes, counted from the front, ascending; all if none are given."""
    rank, dims = ctx.fact(a.self).rank, getattr(a, "dim", None)
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(positive_axis(d, rank) for d in ([dims] if isinstance(dims, int) else dims))


def _reduce(op_type: str) -> OpLowering:
    """A reduction over axes."""

    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        axes, keep = _axes(ctx, a), bool(getattr(a, "keepdim", False))
        have, want = ctx.fact(a.self), ctx.fact(node).dtype
        if op_type == "ReduceMean" and have.rank >= 3 and axes == list(range(2, have.rank)) and have.dtype == want:
            return global_average(ctx, node, ctx.value(a.self), flat=not keep)
        x = ctx.cast(node, ctx.value(a.self), have.dtype, want)
        return ctx.emit(node, op_type, [x, ctx.constant(node, "axes", axes)], keepdims=int(keep))

    return lower


def arg_reduce(ctx: Lowering, node: fx.Node, a: SimpleNamespace, *, op_type: str) -> Value:
    """`aten.argmax`, `aten.argmin` along one axis."""
    if a.dim is None:
        raise NoLowering("position of the extremum over all axes")
    return ctx.emit(node, op_type, [ctx.value(a.self)], axis=a.dim, keepdims=int(a.keepdim))


def extremum(ctx: Lowering, node: fx.Node, a: SimpleNamespace, *, reduce: str, arg: str) -> Value:
    """`aten.max`, `aten.min`: of all elements, along an axis (values and positions), or of two tensors."""
    if hasattr(a, "other"):
        return ctx.emit(node, reduce.removeprefix("Reduce"), [ctx.value(a.self), ctx.value(a.other)])
    x = ctx.value(a.self)
    if not hasattr(a, "dim"):
        return ctx.emit(node, reduce, [x], keepdims=0)
    values = ctx.emit(node, reduce, [x, ctx.constant(node, "axes", [a.dim])], part="0", keepdims=int(a.keepdim))
    return values, ctx.emit(node, arg, [x], part="1", axis=a.dim, keepdims=int(a.keepdim))


def _softmax(op_type: str) -> OpLowering:
    def lower(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
        x = ctx.cast(node, ctx.value(a.self), ctx.fact(a.self).dtype, ctx.fact(node).dtype)
        return ctx.emit(node, op_type, [x], axis=a.dim)

    return lower


def matmul(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.matmul`, `mm`, `bmm`."""
    other = a.other if hasattr(a, "other") else a.mat2
    return ctx.emit(node, "MatMul", [ctx.value(a.self), ctx.value(other)])


def addmm(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.addmm`: Gemm."""
    inputs = [ctx.value(a.mat1), ctx.value(a.mat2), ctx.value(a.self)]
    return ctx.emit(node, "Gemm", inputs, alpha=float(a.alpha), beta=float(a.beta))


def attention(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> Value:
    """`aten.scaled_dot_product_attention` without dropout, which evaluation does not have."""
    query, key = ctx.fact(a.query), ctx.fact(a.key)
    if query.rank != key.rank:
        raise NoLowering("attention over operands of different ranks")
    scale = 1 / math.sqrt(query.shape[-1]) if a.scale is None else a.scale
    scaled = ctx.emit(node, "Mul", [ctx.value(a.query), ctx.constant(node, "scale", scale, np.float32)], part="query")
    keys, values = (_every_head(ctx, node, x, a, part) for x, part in ((a.key, "keys"), (a.value, "values")))
    swap = [*range(key.rank - 2), key.rank - 1, key.rank - 2]
    logits = ctx.emit(
        node, "MatMul", [scaled, ctx.emit(node, "Transpose", [keys], part="key", perm=swap)], part="logits"
    )
    mask = _attention_mask(ctx, node, a)
    if mask is not None:
        logits = ctx.emit(node, "Add", [logits, mask], part="masked")
    weights = ctx.emit(node, "Softmax", [logits], part="weights", axis=-1)
    return ctx.emit(node, "MatMul", [weights, values])


def _every_head(ctx: Lowering, node: fx.Node, x: Any, a: SimpleNamespace, part: str) -> str:
    """Keys or values with one head for each of the queries': those of grouped-query attention are repeated."""
    heads, have = ctx.fact(a.query).shape[-3:-2], ctx.fact(x).shape[-3:-2]
    if not getattr(a, "enable_gqa", False) or heads == have:
        return ctx.value(x)
    index = ctx.constant(node, f"{part}_of_heads", [head * have[0] // heads[0] for head in range(heads[0])])
    return ctx.emit(node, "Gather", [ctx.value(x), index], part=part, axis=ctx.fact(x).rank - 3)


def _attention_mask(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> str | None:
    """What is added to the logits: minus infinity where a query must not look."""
    query, key = ctx.fact(a.query), ctx.fact(a.key)
    if a.is_causal:
        if query.dynamic(-2) or key.dynamic(-2):
            return _causal_mask(ctx, node, a)
        keep = np.tril(np.ones((query.shape[-2], key.shape[-2]), bool))
        return ctx.constant(node, "mask", np.where(keep, 0.0, -np.inf), np.float32)
    if a.attn_mask is None:
        return None
    mask = ctx.value(a.attn_mask)
    if ctx.fact(a.attn_mask).dtype != torch.bool:
        return mask
    zero, lowest = ctx.constant(node, "zero", 0, np.float32), ctx.constant(node, "lowest", -np.inf, np.float32)
    return ctx.emit(node, "Where", [mask, zero, lowest], part="mask")


def _causal_mask(ctx: Lowering, node: fx.Node, a: SimpleNamespace) -> str:
    """Minus infinity above the diagonal, for lengths that are known at run time."""
    sides = [
        ctx.emit(node, "Shape", [ctx.value(x)], part=f"{part}_length", start=-2, end=ctx.fact(x).rank - 1)
        for x, part in ((a.query, "query"), (a.key, "key"))
    ]
    shape = ctx.emit(node, "Concat", sides, part="mask_shape", axis=0)
    lowest = ctx.emit(node, "Expand", [ctx.constant(node, "lowest", -np.inf, np.float32), shape], part="lowest_square")
    return ctx.emit(node, "Trilu", [lowest, ctx.constant(node, "above", 1)], part="mask", upper=1)


_UNARY: Mapping[str, str] = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "neg": "Neg",
    "abs": "Abs", "erf": "Erf", "floor": "Floor", "ceil": "Ceil", "round": "Round", "reciprocal": "Reciprocal",
    "sin": "Sin", "cos": "Cos", "sign": "Sign", "hardswish": "HardSwish", "mish": "Mish", "logical_not": "Not",
    "bitwise_not": "Not",
}  # fmt: skip
_BINARY: Mapping[str, str] = {"add": "Add", "sub": "Sub", "mul": "Mul", "maximum": "Max", "minimum": "Min"}
_COMPARE: Mapping[str, str] = {
    "eq": "Equal",
    "gt": "Greater",
    "lt": "Less",
    "ge": "GreaterOrEqual",
    "le": "LessOrEqual",
}
_REDUCE: Mapping[str, str] = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax", "amin": "ReduceMin"}
_MATMUL: tuple[str, ...] = ("matmul", "mm", "bmm")
_EXTREMA: Mapping[str, Callable[..., Value]] = {
    "argmax": partial(arg_reduce, op_type="ArgMax"),
    "argmin": partial(arg_reduce, op_type="ArgMin"),
    "max": partial(extremum, reduce="ReduceMax", arg="ArgMax"),
    "min": partial(extremum, reduce="ReduceMin", arg="ArgMin"),
}

OPS: Mapping[str, OpLowering] = {
    **{name: _unary(op_type) for name, op_type in _UNARY.items()},
    **{name: _binary(op_type) for name, op_type in _BINARY.items()},
    **{name: _compare(op_type) for name, op_type in _COMPARE.items()},
    **{name: _reduce(op_type) for name, op_type in _REDUCE.items()},
    **dict.fromkeys(_MATMUL, matmul),
    **dict.fromkeys(("hardtanh", "relu6", "clamp", "clamp_min", "clamp_max"), clip),
    **dict.fromkeys(("div", "truediv"), divide),
    **_EXTREMA,
    "hardsigmoid": _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
    "ne": _compare("Equal", negate=True),
    "rsub": _binary("Sub", swap=True),
    "softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "silu": silu,
    "gelu": gelu,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "softplus": softplus,
    "floordiv": floor_divide,
    "pow": power,
    "rsqrt": rsqrt,
    "where": where,
    "masked_fill": masked_fill,
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
}
"""Lowering by ATen (or `operator`) name."""
