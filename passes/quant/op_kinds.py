"""What each operation does to values on an integer grid: the op table. A new operation is one more entry."""

from __future__ import annotations

from enum import Enum, auto

from torch import fx, nn
from torch._ops import OpOverload


class Kind(Enum):
    """How an operation treats quantised values.

    MOVE: its results are points of the input's grid (copies, zeros, maxima), so they keep scale and zero point.
    RECTIFY: as MOVE for values at or above zero; fused into the producer if it alone reads it. Its result is
    non-negative. JOIN: an integer kernel with several inputs and a grid of its own for the result.
    UNARY: an integer kernel with one input and a grid of its own for the result.
    REDUCE: as UNARY, for averages.
    FLOAT: no integer kernel: reads and writes floats.
    """

    MOVE = auto()
    RECTIFY = auto()
    JOIN = auto()
    UNARY = auto()
    REDUCE = auto()
    FLOAT = auto()


OPERATIONS: dict[str, Kind] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose"), Kind.MOVE),
    **dict.fromkeys(("squeeze", "unsqueeze", "expand", "contiguous", "clone", "alias", "movedim"), Kind.MOVE),
    **dict.fromkeys(("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "getitem"), Kind.MOVE),
    **dict.fromkeys(("constant_pad_nd", "pad", "max_pool1d", "max_pool2d", "max_pool3d"), Kind.MOVE),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "upsample_nearest2d"), Kind.MOVE),
    **dict.fromkeys(("relu", "relu6", "clamp", "clamp_min", "hardtanh"), Kind.RECTIFY),
    **dict.fromkeys(("add", "mul", "cat", "concat"), Kind.JOIN),
    **dict.fromkeys(("leaky_relu", "sigmoid"), Kind.UNARY),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), Kind.REDUCE),
    **dict.fromkeys(("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean"), Kind.REDUCE),
}
"""Kind by ATen operation name (all overloads) or name of a Python operator; anything else is FLOAT."""

NON_NEGATIVE = frozenset({"sigmoid", "hardsigmoid", "softmax", "abs", "square", "exp", "softplus"})
"""Operations whose result is never negative, besides RECTIFY."""

KEEPS_SIGN = frozenset({"add", "mul", "cat", "concat"})
"""Operations whose result is not negative if no input is, besides MOVE and REDUCE."""


def operation(node: fx.Node) -> str:
    """Name of the operation that a node calls, without overload; empty for anything but a function call."""
    if node.op != "call_function":
        return ""
    return node.target._opname if isinstance(node.target, OpOverload) else getattr(node.target, "__name__", "")


def kind_of(node: fx.Node) -> Kind:
    """Kind of a node that is not a layer."""
    name = operation(node)
    kind = OPERATIONS.get(name, Kind.FLOAT)
    if kind is Kind.RECTIFY and _lower_bound(node) != 0:
        return Kind.FLOAT
    if name in ("constant_pad_nd", "pad") and not _pads_zero(node):
        return Kind.FLOAT
    if kind is Kind.JOIN and not _joins_plainly(node):
        return Kind.FLOAT
    return kind


def layer_of(node: fx.Node) -> nn.Module | None:
    """The layer that a node calls."""
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if node.op == "call_module" and owner is not None else None


def _argument(node: fx.Node, name: str, default: object) -> object:
    """An argument of an ATen call by name."""
    if name in node.kwargs:
        return node.kwargs[name]
    names = [a.name for a in node.target._schema.arguments] if isinstance(node.target, OpOverload) else []
    position = names.index(name) if name in names else len(node.args)
    return node.args[position] if position < len(node.args) else default


def _lower_bound(node: fx.Node) -> object:
    """The value that a RECTIFY operation clips at from below."""
    if operation(node) in ("relu", "relu6"):
        return 0
    if operation(node) == "hardtanh":
        return _argument(node, "min_val", -1)
    return _argument(node, "min", None)


def _pads_zero(node: fx.Node) -> bool:
    mode = _argument(node, "mode", "constant")
    return mode == "constant" and _argument(node, "value", 0) in (0, None)


def _joins_plainly(node: fx.Node) -> bool:
    """Whether all operands are computed tensors: integer kernels take no float constants and no multiples."""
    operands = node.args[0] if operation(node) in ("cat", "concat") else node.args
    if not isinstance(operands, list | tuple) or not all(isinstance(operand, fx.Node) for operand in operands):
        return False
    computed = all(operand.op != "get_attr" for operand in operands)  # type: ignore[union-attr]
    return computed and _argument(node, "alpha", 1) == 1
