"""Reductions and pools: channels pass unless the operation runs over them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from . import hints
from .flow import Flow, op_name_of, unlabelled
from .rule import Key, Rule, arguments, concrete
from .values import Labels

REDUCE_NAMES = """mean sum amax amin prod var std all any logsumexp norm linalg_vector_norm argmax argmin nansum nanmean
    var_mean std_mean aminmax median count_nonzero"""

ALONG_NAMES = "softmax _softmax log_softmax _log_softmax cumsum cumprod sort argsort logcumsumexp topk"

NORM_NAMES = "layer_norm native_layer_norm rms_norm _fused_rms_norm"

RECURRENT_NAMES = "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell"

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
    labels = flow.pin(node, labels, axes, f"{op_name_of(flow, node)} runs over its channels", hints.BETWEEN)
    if not labels.labelled:
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
    if len(labels.shape):
        labels = flow.pin(node, labels, [dim], f"{op_name_of(flow, node)} runs over its channels", hints.BETWEEN)
    return _like_outputs(node, labels.ids) if labels.labelled else unlabelled(node)


def flow_normalise(flow: Flow, node: fx.Node) -> Any:
    """Layer and RMS normalisation by an ATen call: the normalised axes, and what scales them, keep their size."""
    values = arguments(node)
    source, *parameters = node.all_input_nodes
    for parameter in parameters:
        if isinstance(parameter.meta.get("val"), Tensor):
            flow.freeze(
                flow.labels(parameter).ids, node, f"{op_name_of(flow, node)} averages over it", hints.NORMALISED
            )
    axes = range(-len(concrete(values["normalized_shape"])), 0)
    labels = flow.pin(
        node, flow.labels(source), axes, f"{op_name_of(flow, node)} averages over its channels", hints.BETWEEN
    )
    return _like_outputs(node, labels.ids) if labels.labelled else unlabelled(node)


def flow_recurrent(flow: Flow, node: fx.Node) -> Any:
    """LSTM, GRU and RNN: a state feeds all others at the next step, and their weights stay as they are."""
    kind = op_name_of(flow, node).removeprefix("aten.").partition("_")[0].upper()
    for source in node.all_input_nodes:
        if isinstance(source.meta.get("val"), Tensor):
            reason = f"it enters or leaves a recurrent layer ({kind}), whose widths stay"
            flow.freeze(flow.labels(source).ids, node, reason, hints.RECURRENT)
    return unlabelled(node)


def flow_triangle(flow: Flow, node: fx.Node) -> Labels:
    """`tril`, `triu`: positions of the last two axes are compared."""
    labels = flow.labels(node.all_input_nodes[0])
    return flow.pin(
        node, labels, [-1, -2], f"{op_name_of(flow, node)} depends on the position of its channels", hints.BETWEEN
    )


def flow_glu(flow: Flow, node: fx.Node) -> Labels:
    """Gated linear unit: the first half of an axis times a gate of the second half, pairwise one channel."""
    labels, values = flow.labels(node.all_input_nodes[0]), arguments(node)
    axis = values["dim"] % len(labels.shape)
    if axis not in labels.axes:
        return Labels(labels.ids, flow.shape(node))
    first, second = labels.ids.chunk(2, axis)
    return Labels(
        flow.same(first, second, node, "a gate joins it with a fixed channel", hints.OTHER_STAYS), flow.shape(node)
    )


def pool_rule(spatial: int) -> Rule:
    """Rule of an operation over the last `spatial` axes."""

    def flow_pool(flow: Flow, node: fx.Node) -> Any:
        labels = flow.labels(node.all_input_nodes[0])
        labels = flow.pin(
            node, labels, range(-spatial, 0), f"{op_name_of(flow, node)} runs over its channels", hints.BETWEEN
        )
        return _like_outputs(node, labels.ids) if labels.labelled else unlabelled(node)

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
    **{f"aten.{name}": Rule(flow_normalise) for name in NORM_NAMES.split()},
    **{
        f"aten.{name}": Rule(flow_recurrent)
        for name in ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"]
    },
    "aten.tril": Rule(flow_triangle),
    "aten.triu": Rule(flow_triangle),
    **{f"aten.{name}": pool_rule(n) for n, names in POOLS.items() for name in names.split()},
}
"""Rules of reductions and pools."""
