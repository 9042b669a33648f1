"""Contractions: matmul, einsum and the attention kernel. Heads are labels that lie on an axis of the batch.

A contraction sums over an axis of both operands. `mask` silences units at weights, so no position of an axis that is
summed over may go by itself: labels there are pinned. What is left of the labels of queries and keys, [heads, size of a
head], is one unit for every head, and multiplying scores and values makes those of the values the same units.

Where one operand is a free parameter it is the weight of a layer: its summed axis reads channels, one of its own axes
computes new ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, fx

from . import hints
from .flow import Flow, op_name_of
from .groups import Role
from .rule import Key, Rule, arguments
from .values import Labels

Term = Sequence[Hashable]
"""The name of every axis of an operand; axes of the same name are the same index."""


def contract(flow: Flow, node: fx.Node, operands: Sequence[fx.Node], terms: Sequence[Term], out: Term) -> Labels:
    """Labels of a product that is summed over every index that `out` does not name."""
    labels = [flow.labels(operand) for operand in operands]
    if any(max(Counter(term).values(), default=1) > 1 for term in terms):
        for part in labels:
            flow.freeze(part.ids, node, f"{op_name_of(flow, node)} takes a diagonal of its channels", hints.DIAGONAL)
        return Labels.none(flow.shape(node))
    weights = [i for i, operand in enumerate(operands) if flow.is_weight(operand)]
    if len(operands) == 2 and len(weights) == 1:
        (w,) = weights
        return _weighted(flow, node, (operands[1 - w], terms[1 - w]), (operands[w], terms[w]), out)
    views = [
        _laid_out(_summed(flow, node, part, term, out), term, out) for part, term in zip(labels, terms, strict=True)
    ]
    return Labels(flow.unify(node, views).ids, flow.shape(node))


def _summed(flow: Flow, node: fx.Node, labels: Labels, term: Term, out: Term) -> Labels:
    """Labels pinned along the axes that are summed over."""
    axes = [axis for axis, name in enumerate(term) if name not in out]
    return flow.pin(node, labels, axes, f"{op_name_of(flow, node)} sums over its channels", hints.HEADS)


def _laid_out(labels: Labels, term: Term, out: Term) -> Labels:
    """Labels with the axes of the product: size 1 where the operand has none. Summed axes have none left."""
    order = [term.index(name) for name in out if name in term]
    summed = [axis for axis in range(len(term)) if axis not in order]
    ids = labels.ids.permute(*order, *summed).reshape([labels.ids.shape[axis] for axis in order])
    sizes = [labels.shape[axis] for axis in order]
    for position, name in enumerate(out):
        if name not in term:
            ids = ids.unsqueeze(position)
            sizes.insert(position, 1)
    return Labels(ids, tuple(sizes))


def _weighted(
    flow: Flow, node: fx.Node, operand: tuple[fx.Node, Term], weight: tuple[fx.Node, Term], out: Term
) -> Labels:
    """A product with a free parameter: reads channels along the first labelled axis that is summed over.

    Channels on axes that stay pass; those of an axis that the weight has too (a weight for every head) carry it along.
    Else the first axis that the weight alone has computes new channels.
    """
    (source, term), (parameter, weight_term) = operand, weight
    sizes = dict(zip(weight_term, flow.shape(parameter), strict=True))
    shared = [name for name in term if sizes.get(name, 1) > 1]
    labels = flow.labels(source)
    alone = [axis for axis, name in enumerate(term) if name not in out and name not in shared]
    labels = flow.pin(node, labels, alone, f"{op_name_of(flow, node)} sums over its channels", hints.HEADS)
    if any(term[axis] in out for axis in labels.axes):
        labels = flow.live(labels)
    here = [term[axis] for axis in labels.axes]
    passing = sorted((n for n in here if n in out), key=lambda name: name not in shared)
    kept = (passing or [name for name in here if name in shared])[:1]
    name = kept[0] if kept else None
    others = [term.index(n) for n in here if n != name]
    labels = flow.pin(
        node, labels, others, f"{op_name_of(flow, node)} mixes the axes that its channels lie on", hints.ONE_AXIS
    )

    roles: dict[Hashable, tuple[Role, Tensor]] = {}
    result = Labels.none(flow.shape(node))
    if name is not None and labels.labelled and name in shared:
        role = Role.CARRY if name in out else Role.CONSUME
        roles[name] = (role, labels.along(term.index(name)))
        if role is Role.CONSUME:
            flow.read(node, source, term.index(name))
    if passing:
        result = Labels(_laid_out(labels, term, out).ids, result.shape)
    else:
        new = next((n for n in weight_term if n in out and n not in term), None)
        if new is not None:
            roles[new] = (Role.PRODUCE, flow.fresh(sizes[new]))
            result = Labels.on_axis(result.shape, out.index(new), roles[new][1])
    for axis, index in enumerate(weight_term):
        role, ids = roles.get(index, (Role.CARRY, torch.zeros(sizes[index], dtype=torch.int64)))
        flow.use_weight(node, parameter, axis, role, ids)
    return result


# The operations.


def matmul_terms(first: int, second: int) -> tuple[list[Hashable], list[Hashable], list[Hashable]]:
    """Terms of `matmul` on operands of these ranks: [..., n, k] by [..., k, m], batch axes aligned at their ends."""
    batch = [f"b{i}" for i in reversed(range(max(first, second) - 2))]
    rows: list[Hashable] = ["n"] if first > 1 else []
    columns: list[Hashable] = ["m"] if second > 1 else []
    a = [*batch[len(batch) - max(first - 2, 0) :], *rows, "k"]
    b = [*batch[len(batch) - max(second - 2, 0) :], "k", *columns]
    return a, b, [*batch, *rows, *columns]


def flow_matmul(flow: Flow, node: fx.Node) -> Labels:
    """`matmul`, `mm`, `bmm`."""
    a, b = node.all_input_nodes if len(node.all_input_nodes) == 2 else node.all_input_nodes * 2
    first, second, out = matmul_terms(len(flow.shape(a)), len(flow.shape(b)))
    return contract(flow, node, [a, b], [first, second], out)


def flow_addmm(flow: Flow, node: fx.Node) -> Labels:
    """`addmm` and `baddbmm`: a product and something added to it."""
    values = arguments(node)
    a, b = (values["mat1"], values["mat2"]) if "mat1" in values else (values["batch1"], values["batch2"])
    first, second, out = matmul_terms(len(flow.shape(a)), len(flow.shape(b)))
    product = contract(flow, node, [a, b], [first, second], out)
    if values.get("beta") == 0:
        return product
    return flow.unify(node, [product, flow.labels(values["self"])])


def flow_linear_op(flow: Flow, node: fx.Node) -> Labels:
    """A linear map whose weight is computed by the graph (or is no layer's)."""
    values = arguments(node)
    rank = len(flow.shape(values["input"]))
    term = [*range(rank - 1), "k"]
    product = contract(flow, node, [values["input"], values["weight"]], [term, ["m", "k"]], [*range(rank - 1), "m"])
    return product if values["bias"] is None else flow.unify(node, [product, flow.labels(values["bias"])])


def flow_einsum(flow: Flow, node: fx.Node) -> Labels:
    """Any Einstein sum."""
    values = arguments(node)
    operands = list(values["tensors"])
    terms, out = einsum_terms(values["equation"], [len(flow.shape(operand)) for operand in operands])
    return contract(flow, node, operands, terms, out)


def einsum_terms(equation: str, ranks: Sequence[int]) -> tuple[list[list[Hashable]], list[Hashable]]:
    """Terms of the operands and the product; the axes of "..." are counted from their last."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    hidden = [rank - len(text.replace("...", "")) for text, rank in zip(texts, ranks, strict=True)]
    terms = [_term(text, count) for text, count in zip(texts, hidden, strict=True)]
    widest = max((count for text, count in zip(texts, hidden, strict=True) if "..." in text), default=0)
    if arrow:
        return terms, _term(right, widest)
    once = Counter(name for term in terms for name in term if isinstance(name, str))
    return terms, [*range(widest - 1, -1, -1), *sorted(name for name, times in once.items() if times == 1)]


def _term(text: str, hidden: int) -> list[Hashable]:
    front, dots, back = text.partition("...")
    return [*front, *(range(hidden - 1, -1, -1) if dots else ()), *back]


def flow_attention(flow: Flow, node: fx.Node) -> Labels:
    """`scaled_dot_product_attention`: softmax(q kᵀ) v over queries [..., H, L, E], keys and values [..., H', S, E].

    The size of a head is in the scale, and scores sum over it: units are heads. With fewer heads of keys and values
    (grouped queries) a unit is one of those with all its queries. A mask that differs between heads goes with them.
    """
    values = arguments(node)
    query, key, value = (flow.labels(values[name]) for name in ("query", "key", "value"))
    rank = len(flow.shape(node))
    batch: list[Hashable] = list(range(rank - 2))
    if values.get("enable_gqa"):
        heads = query.shape[-3]
        key, value = (_every_query(part, heads // part.shape[-3]) for part in (key, value))
    out = [*batch, "l", "v"]
    parts = [(query, [*batch, "l", "e"]), (key, [*batch, "s", "e"]), (value, [*batch, "s", "v"])]
    mask = values.get("attn_mask")
    if isinstance(mask, fx.Node):
        labels = flow.labels(mask)
        parts.append((labels, [*batch, "l", "s"][rank - len(labels.shape) :]))
    views = [_laid_out(_summed(flow, node, part, term, out), term, out) for part, term in parts]
    return Labels(flow.unify(node, views).ids, flow.shape(node))


def _every_query(labels: Labels, times: int) -> Labels:
    """Labels of keys or values, repeated for the query heads that read them."""
    axis = len(labels.shape) - 3
    ids = labels.ids.repeat_interleave(times, axis) if axis in labels.axes else labels.ids
    return Labels(ids, tuple(size * (times if a == axis else 1) for a, size in enumerate(labels.shape)))


CONTRACT: dict[Key, Rule] = {
    **{f"aten.{name}": Rule(flow_matmul) for name in ("matmul", "mm", "bmm")},
    "aten.addmm": Rule(flow_addmm),
    "aten.baddbmm": Rule(flow_addmm),
    "aten.linear": Rule(flow_linear_op),
    "aten.einsum": Rule(flow_einsum),
    "aten.scaled_dot_product_attention": Rule(flow_attention),
}
"""Rules of contractions."""
