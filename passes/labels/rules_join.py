"""Concatenation, stacking, padding and constant tensors."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from . import hints
from .flow import Flow, op_name_of
from .resize import Resize
from .rule import Key, Rule, arguments, concrete, set_argument
from .rules_movement import rewrite_sizes
from .values import Labels


def flow_cat(flow: Flow, node: fx.Node) -> Labels:
    """Concatenation: labels in a row along its axis, the same on all others."""
    values = arguments(node)
    shape = flow.shape(node)
    axis = values["dim"] % len(shape)
    parts = [p for p in map(flow.labels, values["tensors"]) if len(p.shape) == len(shape)]  # legacy: empty 1-d tensors
    if not any(p.labelled for p in parts):
        return Labels.none(shape)
    if not any(set(p.axes) - {axis} for p in parts):
        return Labels.on_axis(shape, axis, torch.cat([p.along(axis) for p in parts]))
    others = set().union(*(p.axes for p in parts)) - {axis}
    if any(axis in p.axes for p in parts) and all(others <= set(p.axes) for p in parts):
        # Halves of every head, say: all parts have the other axes in common.
        sizes = [max(s) for s in zip(*(p.ids.shape for p in parts), strict=True)]
        rows = [p.ids.expand(*(p.shape[a] if a == axis else s for a, s in enumerate(sizes))) for p in parts]
        out = Labels(torch.cat(rows, axis), shape)
        flow.rectangle(out)
        return out
    reason = "it concatenates along an axis that has channels in some parts only"
    parts = [flow.pin(node, p, [axis], reason, hints.SEVERAL) for p in parts]
    # Channels on another axis: every part has the same ones. Where the joined axis itself is long does not matter.
    thin = [Labels(p.ids, tuple(1 if a == axis else s for a, s in enumerate(p.shape))) for p in parts]
    return Labels(flow.unify(node, thin).ids, shape)


def flow_stack(flow: Flow, node: fx.Node) -> Labels:
    """Stacking on a new axis: every part has the same channels."""
    values = arguments(node)
    shape = flow.shape(node)
    labels = flow.unify(node, [flow.labels(n) for n in values["tensors"]])
    return Labels(labels.ids.unsqueeze(values["dim"] % len(shape)), shape)


def pad_amounts(node: fx.Node, rank: int) -> list[tuple[int, int]]:
    """Padding in front and behind, by axis (the schema counts from the last axis)."""
    flat = concrete(arguments(node)["pad"])
    amounts = [(0, 0)] * rank
    for i in range(len(flat) // 2):
        amounts[rank - 1 - i] = (flat[2 * i], flat[2 * i + 1])
    return amounts


def flow_pad(flow: Flow, node: fx.Node) -> Labels:
    """Constant padding. On an axis of channels the new positions are channels too, which this operation makes."""
    labels, shape = flow.labels(node.all_input_nodes[0]), flow.shape(node)
    padded = [(a, pad) for a, pad in enumerate(pad_amounts(node, len(shape))) if pad != (0, 0) and a in labels.axes]
    if not padded:
        return Labels(labels.ids, shape)
    mode = arguments(node).get("mode", "constant")
    if mode != "constant" or len(labels.axes) > 1 or any(min(pad) < 0 for _, pad in padded):
        flow.freeze(labels.ids, node, f"{op_name_of(flow, node)} pads its channels by other channels", hints.PAD)
        return Labels.none(shape)
    axis, (front, back) = padded[0]
    ids = torch.cat([_new_positions(flow, front), labels.along(axis), _new_positions(flow, back)])
    return Labels.on_axis(shape, axis, ids)


def _new_positions(flow: Flow, count: int) -> Tensor:
    """Fresh ids; a single one is a channel too, since it lies beside others."""
    return flow.fresh(count + 1)[:count] if count == 1 else flow.fresh(count)


def rewrite_pad(resize: Resize, node: fx.Node) -> None:
    """Amounts: the padded positions that stay."""
    rank = len(resize.shape(node))
    flat = list(arguments(node)["pad"])
    for axis, (front, back) in enumerate(pad_amounts(node, rank)):
        mask, i = resize.mask(node, axis), 2 * (rank - 1 - axis)
        if mask is not None and i < len(flat):
            flat[i] = int(mask[:front].sum())
            flat[i + 1] = int(mask[len(mask) - back :].sum())
    set_argument(node, "pad", flat)


def flow_constant(flow: Flow, node: fx.Node) -> Labels:
    """Zeros, ones, full: of any width. Axis 1 is that of the channels, as in images and feature vectors."""
    shape = flow.shape(node)
    if len(shape) in (2, 4, 5):
        return Labels.on_axis(shape, 1, flow.fresh(shape[1]))
    return Labels.none(shape)


JOIN: dict[Key, Rule] = {
    "aten.cat": Rule(flow_cat),
    "aten.concat": Rule(flow_cat),
    "aten.concatenate": Rule(flow_cat),
    "aten.stack": Rule(flow_stack),
    "aten.pad": Rule(flow_pad, rewrite_pad),
    "aten.constant_pad_nd": Rule(flow_pad, rewrite_pad),
    **{
        f"aten.{n}": Rule(flow_constant, rewrite_sizes)
        for n in ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")
    },
}
"""Rules of operations that put tensors together."""
