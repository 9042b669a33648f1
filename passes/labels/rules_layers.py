"""Layers with weights: convolution and linear start new channels and read old ones; normalisation lets them pass."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from . import hints
from .flow import Flow
from .groups import Role
from .resize import Resize
from .rule import Key, Rule
from .values import Labels


def first_input(node: fx.Node) -> fx.Node:
    """The node that a layer reads."""
    return node.all_input_nodes[0]


def flow_conv(flow: Flow, node: fx.Node) -> Labels:
    """Convolution, transposed or not; plain, grouped or depthwise.

    With one group the input axis of the weight reads the channels and the output axis computes new ones. A depthwise
    convolution keeps each input channel (and its multiples). Otherwise groups must stay equally wide, so the channels
    at the same position of every group become one unit, in the input and in the output. Channels on the batch axis
    (heads, merged into it) pass.
    """
    conv = flow.module(node)
    assert isinstance(conv, _ConvNd)
    transposed = isinstance(conv, _ConvTransposeNd)
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    shape = flow.shape(node)
    channel = len(shape) - len(conv.kernel_size) - 1
    labels = flow.labels(first_input(node))
    if any(axis < channel for axis in labels.axes):
        flow.fix_parameters(node)
        return Labels(
            flow.pin(node, labels, range(channel, len(shape)), _MIXES.format("the convolution"), hints.ONE_AXIS).ids,
            shape,
        )
    ids = flow.only_along(node, labels, channel)
    if is_depthwise(conv):
        out = ids.repeat_interleave(conv.out_channels // conv.groups)
        flow.use(node, "weight", 0, Role.PRODUCE, ids if transposed else out)
    else:
        flow.read(node, first_input(node), channel)
        rows = tie(flow, node, ids, conv.groups)
        flow.use(node, "weight", in_axis, Role.CONSUME, rows.repeat(conv.groups) if transposed else rows)
        fresh = flow.fresh(conv.out_channels // conv.groups)
        out = fresh.repeat(conv.groups)
        flow.use(node, "weight", out_axis, Role.PRODUCE, fresh if transposed else out)
    flow.use(node, "bias", 0, Role.CARRY, out)
    return Labels.on_axis(shape, channel, out)


_MIXES = "{} mixes every part of its channels"


def is_depthwise(conv: _ConvNd) -> bool:
    """Whether every group has one input channel."""
    return conv.groups > 1 and conv.groups == conv.in_channels


def tie(flow: Flow, node: fx.Node, ids: Tensor, groups: int) -> Tensor:
    """Records that ids [groups * n] at the same position of every group are one channel; returns the first row [n]."""
    if groups == 1:
        return ids
    rows = ids.reshape(groups, -1)
    return flow.same(
        rows[:1],
        rows,
        node,
        "it is used together with fixed channels at the same position of other groups",
        hints.GROUPS,
    ).amax(0)


def rewrite_conv(resize: Resize, node: fx.Node) -> None:
    """Channel counts; the number of groups of a depthwise convolution."""
    conv = resize.module(node)
    assert isinstance(conv, _ConvNd)
    channel = len(resize.shape(node)) - len(conv.kernel_size) - 1
    inputs, outputs = resize.shape(first_input(node))[channel], resize.shape(node)[channel]
    if is_depthwise(conv):
        conv.groups = inputs
    conv.in_channels, conv.out_channels = inputs, outputs


def flow_linear(flow: Flow, node: fx.Node) -> Labels:
    """Linear layer: reads channels on the last axis and computes new ones; channels on other axes pass.

    Channels on the last axis and on others (every head read by the same weights) are pinned on the last; a free
    parameter (learnt queries, positions) has its channels on the last axis.
    """
    linear = flow.module(node)
    assert isinstance(linear, nn.Linear)
    labels = flow.labels(first_input(node))
    shape = flow.shape(node)
    last = len(shape) - 1
    if labels.axes != (last,):
        labels = flow.live(labels)
        if len(labels.axes) > 1 and flow.is_free(labels):
            labels = flow.pin(node, labels, labels.axes[:-1], _MIXES.format("the linear layer"), hints.ONE_AXIS)
    if labels.axes and labels.axes != (last,):
        flow.fix_parameters(node)
        return Labels(flow.pin(node, labels, [last], _MIXES.format("the linear layer"), hints.ONE_AXIS).ids, shape)
    flow.read(node, first_input(node), last)
    flow.use(node, "weight", 1, Role.CONSUME, labels.along(last))
    out = flow.fresh(linear.out_features)
    flow.use(node, "weight", 0, Role.PRODUCE, out)
    flow.use(node, "bias", 0, Role.CARRY, out)
    return Labels.on_axis(shape, last, out)


def rewrite_linear(resize: Resize, node: fx.Node) -> None:
    """Feature counts."""
    linear = resize.module(node)
    assert isinstance(linear, nn.Linear)
    linear.in_features = resize.shape(first_input(node))[-1]
    linear.out_features = resize.shape(node)[-1]


def flow_channel_norm(flow: Flow, node: fx.Node) -> Labels:
    """Batch and instance normalisation: each channel on its own."""
    labels = flow.labels(first_input(node))
    module = flow.module(node)
    assert isinstance(module, _NormBase)
    # Without a batch axis, instance normalisation has its channels first; the number of features tells.
    channel = 1 if len(labels.shape) > 1 and labels.shape[1] == module.num_features else 0
    if any(axis < channel for axis in labels.axes):
        flow.fix_parameters(node)
        return flow.pin(
            node, labels, range(channel, len(labels.shape)), _MIXES.format("the normalisation"), hints.ONE_AXIS
        )
    ids = flow.only_along(node, labels, channel)
    for name in ("weight", "bias", "running_mean", "running_var"):
        flow.use(node, name, 0, Role.CARRY, ids)
    return Labels.on_axis(labels.shape, channel, ids)


def rewrite_channel_norm(resize: Resize, node: fx.Node) -> None:
    """Feature count."""
    norm = resize.module(node)
    assert isinstance(norm, _NormBase)
    channel = next(axis for axis, mask in enumerate(resize.masks(node)) if mask is not None)
    if norm.num_features == resize.old_shape(node)[channel]:
        norm.num_features = resize.shape(node)[channel]


def flow_layer_norm(flow: Flow, node: fx.Node) -> Labels:
    """Layer and RMS normalisation: the normalised axes must keep their size; channels on others pass."""
    module = flow.module(node)
    labels = flow.labels(first_input(node))
    reason = f"{type(module).__name__} averages over its channels"
    normalised = len(module.normalized_shape)  # type: ignore[arg-type]
    if normalised == 1 and labels.axes == (len(labels.shape) - 1,):
        # Each channel stays itself, so that what is added behind is frozen for this reason as well.
        if flow.widths and isinstance(module, nn.LayerNorm):
            flow.averaged.append((node, first_input(node)))
        else:
            flow.freeze(labels.ids, node, reason, hints.NORMALISED)
        for name in ("weight", "bias"):
            flow.use(node, name, 0, Role.CARRY, labels.along(-1))
        return labels
    flow.fix_parameters(node)
    return flow.pin(node, labels, range(-normalised, 0), reason, hints.NORMALISED)


def rewrite_layer_norm(resize: Resize, node: fx.Node) -> None:
    """The normalised width."""
    norm = resize.module(node)
    assert isinstance(norm, nn.LayerNorm)
    if len(norm.normalized_shape) == 1:
        norm.normalized_shape = (resize.shape(node)[-1],)


def flow_group_norm(flow: Flow, node: fx.Node) -> Labels:
    """Group normalisation: every group has its own statistics, so the channels of one group are one unit."""
    norm = flow.module(node)
    assert isinstance(norm, nn.GroupNorm)
    labels = flow.labels(first_input(node))
    others = [axis for axis in labels.axes if axis != 1]
    if norm.num_groups == 1 or others:
        flow.fix_parameters(node)
        return flow.pin(node, labels, {1, *others}, "GroupNorm averages over its channels", hints.ONE_GROUP)
    ids = labels.along(1)
    # Row r holds channel r of every group: tied rows are whole groups.
    size = norm.num_channels // norm.num_groups
    first = tie(flow, node, ids.reshape(-1, size).t().reshape(-1), size)
    ids = first.repeat_interleave(size)
    for name in ("weight", "bias"):
        flow.use(node, name, 0, Role.CARRY, ids)
    return Labels.on_axis(labels.shape, 1, ids)


def rewrite_group_norm(resize: Resize, node: fx.Node) -> None:
    """Channels and groups; the size of a group stays."""
    norm = resize.module(node)
    assert isinstance(norm, nn.GroupNorm)
    size = norm.num_channels // norm.num_groups
    if resize.mask(node, 1) is not None:
        norm.num_channels = resize.shape(node)[1]
        norm.num_groups = norm.num_channels // size


def flow_prelu(flow: Flow, node: fx.Node) -> Labels:
    """PReLU: one slope for all, or one per channel on axis 1."""
    labels = flow.labels(first_input(node))
    prelu = flow.module(node)
    assert isinstance(prelu, nn.PReLU)
    if prelu.num_parameters > 1:
        flow.use(node, "weight", 0, Role.CARRY, flow.only_along(node, labels, 1))
    return labels


def rewrite_prelu(resize: Resize, node: fx.Node) -> None:
    """Number of slopes."""
    prelu = resize.module(node)
    assert isinstance(prelu, nn.PReLU)
    if prelu.num_parameters > 1:
        prelu.num_parameters = resize.shape(node)[1]


def flow_embedding(flow: Flow, node: fx.Node) -> Labels:
    """Embedding: its rows stay, its width is computed here."""
    embedding = flow.module(node)
    assert isinstance(embedding, nn.Embedding)
    out = flow.fresh(embedding.embedding_dim)
    flow.use(node, "weight", 0, Role.CARRY, torch.zeros(embedding.num_embeddings, dtype=torch.int64))
    flow.use(node, "weight", 1, Role.PRODUCE, out)
    return Labels.on_axis(flow.shape(node), -1, out)


def rewrite_embedding(resize: Resize, node: fx.Node) -> None:
    """Width."""
    embedding = resize.module(node)
    assert isinstance(embedding, nn.Embedding)
    embedding.embedding_dim = resize.shape(node)[-1]


def flow_same(flow: Flow, node: fx.Node) -> Labels:
    """Layers that keep every element in its place."""
    return flow.labels(first_input(node))


LAYERS: dict[Key, Rule] = {
    _ConvNd: Rule(flow_conv, rewrite_conv),
    nn.Linear: Rule(flow_linear, rewrite_linear),
    _NormBase: Rule(flow_channel_norm, rewrite_channel_norm),
    nn.LayerNorm: Rule(flow_layer_norm, rewrite_layer_norm),
    nn.RMSNorm: Rule(flow_layer_norm),
    nn.GroupNorm: Rule(flow_group_norm, rewrite_group_norm),
    nn.PReLU: Rule(flow_prelu, rewrite_prelu),
    nn.Embedding: Rule(flow_embedding, rewrite_embedding),
    _DropoutNd: Rule(flow_same),
    nn.Identity: Rule(flow_same),
}
"""Rules of layers, by class; a subclass without an entry takes that of its nearest base class."""
