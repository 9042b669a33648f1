"""Elementwise operations: every operand has the same channels at the same place."""

from __future__ import annotations

from typing import Any

from torch import fx

from .flow import Flow, is_tensor, unlabelled
from .rule import Key, Rule, arguments
from .values import Labels

POINTWISE_NAMES = """
    abs add addcdiv addcmul alias alpha_dropout bitwise_and bitwise_not bitwise_or bitwise_xor ceil celu clamp
    clamp_max clamp_min clone contiguous copy copysign cos cosh deg2rad detach div divide dropout elu empty_like
    eq erf erfc exp exp2 expand_as expm1 fake_quantize_per_tensor_affine feature_alpha_dropout feature_dropout
    fill floor floor_divide floor_power fmod frac full_like ge gelu gt hardshrink hardsigmoid hardswish hardtanh
    heaviside hypot isfinite isinf isnan le leaky_relu lerp lift_fresh_copy log log10 log1p log2 log_sigmoid
    logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mish mul multiply
    nan_to_num ne neg negative ones_like positive pow rand_like randn_like reciprocal relu relu6 remainder round
    rrelu rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus softshrink softsign sqrt square sub subtract
    tan tanh tanhshrink threshold to _to_copy true_divide trunc type_as where zero zeros_like
"""


def flow_pointwise(flow: Flow, node: fx.Node) -> Labels | None:
    """Unifies the labels of all tensor operands, broadcast against each other."""
    operands = [n for n in node.all_input_nodes if is_tensor(n)]
    if not operands or not is_tensor(node):
        return unlabelled(node)
    return flow.unify(node, [flow.labels(n) for n in operands])


def flow_prelu_op(flow: Flow, node: fx.Node) -> Labels:
    """`aten.prelu` with its slopes as an operand: one for all, or [C] on axis 1."""
    values = arguments(node)
    x, slope = flow.labels(values["self"]), flow.labels(values["weight"])
    if len(slope.shape) != 1 or slope.shape[0] == 1:
        return flow.unify(node, [x, slope])
    sizes = [1] * len(x.shape)
    axis = 1 if len(x.shape) > 1 else 0
    sizes[axis] = slope.shape[0]
    return flow.unify(node, [x, Labels.on_axis(sizes, axis, slope.ids)])


def flow_nothing(flow: Flow, node: fx.Node) -> Any:
    """Operations that read sizes or check something: no labels in, none out."""
    return unlabelled(node)


def flow_maximum_or_reduction(flow: Flow, node: fx.Node) -> Any:
    """`aten.max` and `aten.min` of two tensors; their reducing overloads are in `rules_reduce`."""
    from .rules_reduce import flow_reduce

    return flow_pointwise(flow, node) if "other" in arguments(node) else flow_reduce(flow, node)


POINTWISE: dict[Key, Rule] = {
    **{f"aten.{name}": Rule(flow_pointwise) for name in POINTWISE_NAMES.split()},
    "aten.prelu": Rule(flow_prelu_op),
    "aten._prelu_kernel": Rule(flow_pointwise),
    "aten.max": Rule(flow_maximum_or_reduction),
    "aten.min": Rule(flow_maximum_or_reduction),
    "aten.sym_size": Rule(flow_nothing),
    "aten.sym_numel": Rule(flow_nothing),
    "aten._assert_tensor_metadata": Rule(flow_nothing),
    "aten._assert_scalar": Rule(flow_nothing),
    "aten._assert_async": Rule(flow_nothing),
}
"""Rules of elementwise operations."""
