"""Reductions and pools: channels pass unless the operation runs over them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from .flow import Flow, op_name_of, unlabelled
from .rule import Key, Rule, arguments, concrete
from .values import Labels

REDUCE_NAMES = """mean sum amax amin prod var std all any logsumexp norm linalg_vector_norm argmax argmin nansum nanmean
    var_mean std_mean aminmax median count_nonzero"""

ALONG_NAMES = "softmax _softmax log_softmax _log_softmax cumsum cumprod sort argsort logcumsumexp topk"

POOLS = {
    1: "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d upsample_linear1d "
    "_upsample_nearest_exact1d max_pool1d_with_indices reflection_pad1d replication_pad1d",
    2: "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d _adaptive_avg_pool2d max_pool2d_with_indices "
    "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa reflection_pad2d replication_pad2d",
    3: "max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d _adaptive_avg_pool3d max_pool3d_with_indices "
    "upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d",
}
"""Operations over the last n axes, by n."""


def flow_reduce(flow: Flow, node: fx.Node) -> Any:
    """Mean, sum, maximum … over axes without channels; channels that are reduced over must stay."""
    labels, rank = flow.labels(node.all_input_nodes[0]), len(flow.shape(node.all_input_nodes[0]))
    values = concrete({k: v for k, v in arguments(node).items() if k in ("dim", "keepdim")})
    dims = values.get("dim")
    dims = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    axes = sorted({d % rank for d in dims}) if rank else []
    if any(axis in labels.axes for axis in axes):
        flow.freeze(labels.ids, node, f"{op_name_of(flow, node)} runs over its channels")
        return unlabelled(node)
    ids = labels.ids
    if not values.get("keepdim", False):
        for axis in reversed(axes):
            ids = ids.squeeze(axis)
    return _like_outputs(node, ids)


def flow_along(flow: Flow, node: fx.Node) -> Any:
    """Softmax, cumulative sum …: along an axis without channels."""
    labels = flow.labels(node.all_input_nodes[0])
    dim = concrete(arguments(node).get("dim", -1))
    if len(labels.shape) and dim % len(labels.shape) in labels.axes:
        flow.freeze(labels.ids, node, f"{op_name_of(flow, node)} runs over its channels")
        return unlabelled(node)
    return _like_outputs(node, labels.ids)


def flow_glu(flow: Flow, node: fx.Node) -> Labels:
    """Gated linear unit: the first half of an axis times a gate of the second half, pairwise one channel."""
    labels, values = flow.labels(node.all_input_nodes[0]), arguments(node)
    axis = values["dim"] % len(labels.shape)
    if axis not in labels.axes:
        return Labels(labels.ids, flow.shape(node))
    first, second = labels.ids.chunk(2, axis)
    return Labels(flow.same(first, second, node, "a gate joins it with a fixed channel"), flow.shape(node))


def pool_rule(spatial: int) -> Rule:
    """Rule of an operation over the last `spatial` axes."""

    def flow_pool(flow: Flow, node: fx.Node) -> Any:
        labels = flow.labels(node.all_input_nodes[0])
        if any(axis >= len(labels.shape) - spatial for axis in labels.axes):
            flow.freeze(labels.ids, node, f"{op_name_of(flow, node)} runs over its channels")
            return unlabelled(node)
        return _like_outputs(node, labels.ids)

    return Rule(flow_pool)


def _like_outputs(node: fx.Node, ids: Tensor) -> Any:
    """Labels of every output (values and indices), all with the same ids."""
    template = unlabelled(node)
    if isinstance(template, tuple):
        return tuple(Labels(ids, part.shape) for part in template)
    return Labels(ids, template.shape)


REDUCE: dict[Key, Rule] = {
    **{f"aten.{name}": Rule(flow_reduce) for name in REDUCE_NAMES.split()},
    **{f"aten.{name}": Rule(flow_along) for name in ALONG_NAMES.split()},
    "aten.glu": Rule(flow_glu),
    **{f"aten.{name}": pool_rule(n) for n, names in POOLS.items() for name in names.split()},
}
"""Rules of reductions and pools."""
