"""Which ATen calls become layers, and with what hyper-parameters: one rule for each family of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.nn.modules.batchnorm import _NormBase

from .modulespec import ModuleSpec

aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """An ATen call as a layer.

    Attributes:
        spec: Type and hyper-parameters.
        input: The node that the layer is applied to.
        tensors: `get_attr` nodes of its parameters and buffers by attribute name, the weight first.
        transposed: Whether the layer's weight is the transpose of that tensor.
    """

    spec: ModuleSpec
    input: fx.Node
    tensors: Mapping[str, fx.Node]
    transposed: bool = False


Rule = Callable[[fx.Node, Mapping[fx.Node, Any], nn.Module | None], Layer | None]
"""`rule(node, values, module)`: node, what nodes compute, the user's module that made it. None: stays an ATen call."""


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an ATen call by name, defaults filled in."""
    assert isinstance(node.target, OpOverload)
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    return {a.name: given.get(a.name, a.default_value) for a in node.target._schema.arguments}


def _tensors(arguments: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, fx.Node] | None:
    """The `get_attr` nodes among the arguments by attribute; None if one is computed (weight norm, masks)."""
    found = {attribute: arguments[name] for attribute, name in names.items() if arguments[name] is not None}
    return found if all(isinstance(n, fx.Node) and n.op == "get_attr" for n in found.values()) else None


def _ints(value: int | Sequence[int], rank: int) -> tuple[int, ...] | None:
    """One integer per spatial axis; None if a size is symbolic."""
    items = [value] if isinstance(value, int) else list(value)
    if not all(isinstance(item, int) for item in items):
        return None
    return tuple(items) * rank if len(items) == 1 else tuple(items)


def _convolution(rank: int, transposed: bool) -> Rule:
    def rule(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
        given = arguments(node)
        tensors = _tensors(given, {"weight": "weight", "bias": "bias"})
        if tensors is None or values[given["input"]].ndim != rank + 2:
            return None
        weight: Tensor = values[tensors["weight"]]
        padding = given["padding"]
        sizes: dict[str, Any] = {name: _ints(given[name], rank) for name in ("stride", "dilation")}
        sizes["padding"] = padding if isinstance(padding, str) else _ints(padding, rank)
        if transposed:
            sizes["output_padding"] = _ints(given["output_padding"], rank)
        groups = given["groups"]
        if None in sizes.values():
            return None
        first, second = weight.shape[:2]
        options = {
            "in_channels": first if transposed else second * groups,
            "out_channels": second * groups if transposed else first,
            "kernel_size": tuple(weight.shape[2:]),
            "groups": groups,
            "bias": "bias" in tensors,
            "padding_mode": "zeros",
            **sizes,
        }
        kind = f"Conv{'Transpose' if transposed else ''}{rank}d"
        return Layer(ModuleSpec(kind, options), given["input"], tensors)

    return rule


def _linear(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
    given = arguments(node)
    tensors = _tensors(given, {"weight": "weight", "bias": "bias"})
    if tensors is None or values[tensors["weight"]].ndim != 2:
        return None
    outputs, inputs = values[tensors["weight"]].shape
    options = {"in_features": inputs, "out_features": outputs, "bias": "bias" in tensors}
    return Layer(ModuleSpec("Linear", options), given["input"], tensors)


def _product(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
    """`x @ weight` and `addmm` with a parameter [inputs, outputs], as GPT-2 has them; `x @ weight.T`, as Falcon has it.

    A bias that is added to the product belongs to the layer: then the sum is the layer, see `_biased_product`.
    """
    alone = list(node.users)
    if len(alone) == 1 and _biased_product(alone[0], values, module) is not None:
        return None
    return _linear_product(node, values)


def _biased_product(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
    """`x @ weight + bias`, with a bias for every output and nothing else that reads the product."""
    if node.target is not aten.add.Tensor or arguments(node)["alpha"] != 1:
        return None
    first, second = (arguments(node)[name] for name in ("self", "other"))
    for product, bias in ((first, second), (second, first)):
        both = isinstance(product, fx.Node) and isinstance(bias, fx.Node) and bias.op == "get_attr"
        if both and product.target in _PRODUCTS and len(product.users) == 1:
            layer = _linear_product(product, values)
            if layer is None or "bias" in layer.tensors or values[bias].shape != (layer.spec.options["out_features"],):
                continue
            tensors = {**layer.tensors, "bias": bias}
            return replace(layer, spec=ModuleSpec("Linear", {**layer.spec.options, "bias": True}), tensors=tensors)
    return None


def _linear_product(node: fx.Node, values: Mapping[fx.Node, Any]) -> Layer | None:
    """A product with a matrix of parameters as a linear layer, without what is added to it outside of `addmm`."""
    given = arguments(node)
    source, weight = (given[name] for name in _PRODUCTS[node.target])
    turned = _turned(weight)
    bias = given["self"] if node.target is aten.addmm.default else None
    plain = given.get("beta", 1) == 1 and given.get("alpha", 1) == 1
    names = {"weight": "weight"} | ({"bias": "bias"} if bias is not None else {})
    tensors = _tensors({"weight": turned or weight, "bias": bias}, names)
    if tensors is None or not plain or source.op == "get_attr" or values[source].ndim < 2:
        return None
    value: Tensor = values[tensors["weight"]]
    if value.ndim != 2 or not (turned or _only_multiplied(weight)):
        return None
    outputs, inputs = value.shape if turned else value.shape[::-1]
    if bias is not None and values[bias].shape != (outputs,):
        return None
    options = {"in_features": inputs, "out_features": outputs, "bias": bias is not None}
    return Layer(ModuleSpec("Linear", options), source, tensors, transposed=not turned)


def _turned(node: Any) -> fx.Node | None:
    """The parameter of which the node is the transpose, if it is one: such a weight lies as linear layers have it."""
    if not isinstance(node, fx.Node) or node.target not in _TURNS:
        return None
    source, *rest = node.args
    axes: Any = rest[0] if rest and isinstance(rest[0], Sequence) else rest
    swaps = [axis % 2 for axis in axes] in ([], [0, 1], [1, 0])
    if not isinstance(source, fx.Node) or source.op != "get_attr" or not swaps:
        return None
    # The permutation (0, 1) moves nothing; as two axes to swap it does.
    return None if node.target is aten.permute.default and axes[0] % 2 == 0 else source


def _only_multiplied(weight: fx.Node) -> bool:
    """Whether a parameter is read as the second factor alone: else its other readers would need it as it is."""
    return all(
        user.target in _PRODUCTS and arguments(user)[_PRODUCTS[user.target][1]] is weight for user in weight.users
    )


_TURNS = frozenset({
    aten.t.default, aten.numpy_T.default, aten.mT.default, aten.transpose.int, aten.permute.default,
})  # fmt: skip
"""Operations that transpose a matrix."""

_PRODUCTS: Mapping[Any, tuple[str, str]] = {
    aten.addmm.default: ("mat1", "mat2"),
    aten.mm.default: ("self", "mat2"),
    aten.matmul.default: ("self", "other"),
}


def _statistics_norm(kind: str, mode: str) -> Rule:
    """Batch and instance norm; `mode` is the argument that says "statistics of this batch".

    A layer in eval mode uses the statistics of the batch exactly if it tracks none. Where the exported call says
    otherwise, the user fixed the mode by hand, and the call stays as it is.
    """

    def rule(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
        given = arguments(node)
        names = {name: name for name in ("weight", "bias", "running_mean", "running_var")}
        tensors = _tensors(given, names)
        if tensors is None:
            return None
        tracks, affine = "running_mean" in tensors, "weight" in tensors
        complete = tracks == ("running_var" in tensors) and affine == ("bias" in tensors)
        value = values[given["input"]]
        rank = max(value.ndim - 2, 1)
        if not complete or bool(given[mode]) == tracks or rank > 3 or value.ndim < 2:
            return None
        # In eval mode "cumulative average" (momentum None) is exported as 0.0, so ask the user's layer.
        momentum = module.momentum if isinstance(module, _NormBase) else given["momentum"]
        options = {
            "num_features": value.shape[1],
            "eps": given["eps"],
            "momentum": momentum,
            "affine": affine,
            "track_running_stats": tracks,
        }
        return Layer(ModuleSpec(f"{kind}{rank}d", options), given["input"], tensors)

    return rule


def _layer_norm(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
    given = arguments(node)
    tensors = _tensors(given, {"weight": "weight", "bias": "bias"})
    shape = tuple(given["normalized_shape"])
    if (
        tensors is None
        or not all(isinstance(size, int) for size in shape)
        or ("bias" in tensors) > ("weight" in tensors)
    ):
        return None
    affine = "weight" in tensors
    options = {
        "normalized_shape": shape,
        "eps": given["eps"],
        "elementwise_affine": affine,
        "bias": "bias" in tensors,
    }
    return Layer(ModuleSpec("LayerNorm", options), given["input"], tensors)


def _group_norm(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
    given = arguments(node)
    tensors = _tensors(given, {"weight": "weight", "bias": "bias"})
    if tensors is None or len(tensors) == 1:
        return None
    channels = values[given["input"]].shape[1]
    options = {
        "num_groups": given["num_groups"],
        "num_channels": channels,
        "eps": given["eps"],
        "affine": bool(tensors),
    }
    return Layer(ModuleSpec("GroupNorm", options), given["input"], tensors)


def _embedding(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
    given = arguments(node)
    tensors = _tensors(given, {"weight": "weight"})
    if tensors is None or not isinstance(given["indices"], fx.Node):
        return None
    rows, columns = values[tensors["weight"]].shape
    options = {
        "num_embeddings": rows,
        "embedding_dim": columns,
        "padding_idx": None if given["padding_idx"] < 0 else given["padding_idx"],
        "max_norm": None,
        "norm_type": 2.0,
        "scale_grad_by_freq": given["scale_grad_by_freq"],
        "sparse": given["sparse"],
    }
    return Layer(ModuleSpec("Embedding", options), given["indices"], tensors)


def _dropout(kind: str, ranked: bool = False) -> Rule:
    """Dropout that is active in eval mode is active by the user's wish, and stays a call."""

    def rule(node: fx.Node, values: Mapping[fx.Node, Any], module: nn.Module | None) -> Layer | None:
        given = arguments(node)
        rank = values[given["input"]].ndim - 2
        if given["train"] or (ranked and rank not in (1, 2, 3)):
            return None
        name = f"{kind}{rank}d" if ranked else kind
        return Layer(ModuleSpec(name, {"p": given["p"]}), given["input"], {})

    return rule


RULES: Mapping[Any, Rule] = {
    aten.conv1d.default: _convolution(1, transposed=False),
    aten.conv1d.padding: _convolution(1, transposed=False),
    aten.conv2d.default: _convolution(2, transposed=False),
    aten.conv2d.padding: _convolution(2, transposed=False),
    aten.conv3d.default: _convolution(3, transposed=False),
    aten.conv3d.padding: _convolution(3, transposed=False),
    aten.conv_transpose1d.default: _convolution(1, transposed=True),
    aten.conv_transpose2d.input: _convolution(2, transposed=True),
    aten.conv_transpose3d.input: _convolution(3, transposed=True),
    aten.linear.default: _linear,
    **dict.fromkeys(_PRODUCTS, _product),
    aten.add.Tensor: _biased_product,
    aten.batch_norm.default: _statistics_norm("BatchNorm", "training"),
    aten.instance_norm.default: _statistics_norm("InstanceNorm", "use_input_stats"),
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.embedding.default: _embedding,
    aten.dropout.default: _dropout("Dropout"),
    aten.feature_dropout.default: _dropout("Dropout", ranked=True),
    aten.alpha_dropout.default: _dropout("AlphaDropout"),
    aten.feature_alpha_dropout.default: _dropout("FeatureAlphaDropout"),
}
"""Rules by ATen operation; an operation without one stays an ATen call."""
