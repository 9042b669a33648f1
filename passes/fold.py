"""Folding: what is an affine map or the identity at inference becomes part of a convolution, a convolution, or nothing.

Batch norm in eval mode is `y = a * x + c` per channel with `a = gamma / sqrt(var + eps)` and `c = beta - a * mean`
(Ioffe and Szegedy 2015). After a convolution or linear layer it becomes part of its weight and bias (Jacob et al.
2018, section 3.2).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd

from .program import Program
from .shapes import propagate
from .tidy import tidy

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def fold_batch_norm(program: Program) -> Program:
    """Folds every batch norm that alone reads a convolution or linear layer into that layer.

    Exact in eval mode: the arithmetic is float64. Layers that are called more than once, and batch norms that track
    no statistics, stay.

    Returns:
        A new program; the layer keeps its name and has a bias.
    """
    program = program.clone(step="fold_batch_norm")
    modules = _modules(program)
    for node in list(program.graph.nodes):
        found = _foldable(node, modules)
        if found is None:
            continue
        before, layer, norm = found
        _fold(layer, norm)
        node.replace_all_uses_with(before)
        program.graph.erase_node(node)
    return _finish(program)


def batch_norm_to_conv(program: Program) -> Program:
    """Replaces every remaining batch norm over a spatial extent by a depthwise convolution with kernel size 1.

    Integer runtimes have kernels for convolutions, none for batch norm.

    Returns:
        A new program; the convolution has the batch norm's name.
    """
    program = program.clone(step="batch_norm_to_conv")
    modules = _modules(program)
    for node in program.graph.nodes:
        norm = _called(node, modules)
        rank = _rank(node.all_input_nodes[0]) - 2 if isinstance(norm, _BatchNorm) else 0
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or rank not in _CONVOLUTIONS:
            continue
        scale, shift = _affine(norm)
        dtype = norm.running_mean.dtype
        layer = nn.utils.skip_init(
            _CONVOLUTIONS[rank], norm.num_features, norm.num_features, 1, groups=norm.num_features
        )
        layer.weight = nn.Parameter(scale.reshape(-1, *[1] * (rank + 1)).to(dtype))
        layer.bias = nn.Parameter(shift.to(dtype))
        layer.train(norm.training)
        program.graph_module.set_submodule(str(node.target), layer)
        modules[str(node.target)] = layer
    return _finish(program)


def remove_dropout(program: Program) -> Program:
    """Removes dropout and identity layers, which compute nothing at inference.

    Returns:
        A new program.
    """
    program = program.clone(step="remove_dropout")
    modules = _modules(program)
    for node in list(program.graph.nodes):
        if isinstance(_called(node, modules), _DropoutNd | nn.Identity):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    return _finish(program)


def _finish(program: Program) -> Program:
    result = replace(program, graph_module=tidy(program.graph_module))
    propagate(result)
    return result


def _modules(program: Program) -> dict[str, nn.Module]:
    return dict(program.graph_module.named_modules())


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules.get(str(node.target)) if node.op == "call_module" else None


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else 0


def _calls(node: fx.Node) -> int:
    """How many nodes call the layer of `node`."""
    return sum(other.op == "call_module" and other.target == node.target for other in node.graph.nodes)


def _foldable(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, _ConvNd | nn.Linear, _BatchNorm] | None:
    """The node and layer that the batch norm at `node` can be folded into, if any."""
    norm = _called(node, modules)
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or _calls(node) > 1:
        return None
    before = node.args[0]
    if not isinstance(before, fx.Node) or len(before.users) > 1:
        return None
    layer = _called(before, modules)
    # On [batch, length, features], batch norm normalises the length, not what a linear layer puts out.
    if isinstance(layer, nn.Linear) and _rank(before) != 2:
        return None
    return (before, layer, norm) if isinstance(layer, _ConvNd | nn.Linear) and _calls(before) == 1 else None


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Batch norm in eval mode as float64 scale and shift, [channels]."""
    assert norm.running_mean is not None and norm.running_var is not None
    mean, var = norm.running_mean.detach().double(), norm.running_var.detach().double()
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight.detach().double() * scale
    shift = -scale * mean
    return scale, shift if norm.bias is None else norm.bias.detach().double() + shift


def _fold(layer: _ConvNd | nn.Linear, norm: _BatchNorm) -> None:
    """Folds `norm` into `layer`, in place. New parameters are made: the old ones may be tied to other layers."""
    scale, shift = _affine(norm)
    weight = layer.weight
    wide = weight.detach().double()
    if isinstance(layer, _ConvTransposeNd):
        # [in, out / groups, ...]; output channel g * (out / groups) + j belongs to the inputs of group g.
        grouped = wide.reshape(layer.groups, -1, *wide.shape[1:])
        scaled = grouped * scale.reshape(layer.groups, 1, -1, *[1] * (wide.ndim - 2))
        scaled = scaled.reshape(wide.shape)
    else:
        scaled = wide * scale.reshape(-1, *[1] * (wide.ndim - 1))
    if layer.bias is not None:
        shift = shift + scale * layer.bias.detach().double()
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(shift.to(weight.dtype))
