"""Weights of implants by least squares: what a stand-in can compute of what the filters computed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ...passes.implant import Implanted, StandIn
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader
from ..heal.device import device_of
from ..heal.lockstep import Lockstep
from ..heal.refit import Targets, refit
from ..sensitivity.batches import read_batches


def fit_implants(
    dense: Program,
    implanted: Implanted,
    loader: Loader,
    *,
    samples: int = 1024,
    ridge: float = 1e-3,
    seed: int = 0,
    progress: Callable[..., Any] | None = None,
) -> Program:
    """Fits every stand-in to what the filters that it replaces compute in the dense network.

    With x what the stand-in reads in the implanted network, whose earlier implants are fitted already, and y what the
    dense layer computes in the implanted channels, it minimises Σ ‖y − W x − b‖² + λ ‖W − W₀‖². The offset b goes into
    the bias, or into the mean of the batch norm that follows. A low-rank form takes the best approximation of the
    fitted outputs of that rank (reduced-rank regression: Izenman 1975); the other factorised forms keep their first
    layers and fit the last. Stand-ins of 3-d convolutions stay as they are.

    Args:
        dense: The network before.
        implanted: What `implant` made of it; not changed.
        loader: Batches; only the inputs are used.
        samples: How many samples are read at most.
        ridge: λ over the mean diagonal of Σ x xᵀ.
        seed: Of the positions that are drawn where an image has more than are needed.
        progress: Told `progress(done, total)` after every stand-in.

    Returns:
        A new program; only stand-ins, and means of batch norms behind them, differ.
    """
    fitted = implanted.program.clone(step="fit implants")
    batches = read_batches(loader, samples, dense, device_of(dense.module()))
    generator = torch.Generator().manual_seed(seed)
    with eval_mode(dense.module()), eval_mode(fitted.module()), torch.no_grad():
        wanted, found = Lockstep(dense, batches, {}), Lockstep(fitted, batches, {})
        for done, stand_in in enumerate(implanted.stand_ins, start=1):
            outputs = wanted.outputs_of(_caller(dense, stand_in.rows.layer).name)
            layer = dense.graph_module.get_submodule(stand_in.rows.layer)
            axis = outputs[0].ndim - (len(layer.kernel_size) + 1 if isinstance(layer, _ConvNd) else 1)
            rows = torch.from_numpy(stand_in.rows.index).to(outputs[0].device)
            _fit(fitted, stand_in, found, [y.index_select(axis, rows) for y in outputs], ridge, generator)
            if progress:
                progress(done, len(implanted.stand_ins))
    return fitted


def _fit(
    program: Program,
    stand_in: StandIn,
    found: Lockstep,
    targets: Sequence[Tensor],
    ridge: float,
    generator: torch.Generator,
) -> None:
    """Fits one stand-in, in place, with `found` on its way through the same program."""
    layers: list[Any] = [program.graph_module.get_submodule(path) for path in stand_in.layers]
    nodes = [_caller(program, path) for path in stand_in.layers]
    inputs = found.inputs_of(nodes[0 if stand_in.form == "low-rank" else -1].name)
    norm = norm_behind(program, nodes[-1])
    biased = isinstance(layers[-1].bias, nn.Parameter) or norm is not None
    offset = fit_layers(layers, stand_in.form, inputs, targets, biased=biased, ridge=ridge, generator=generator)
    if offset is None:
        return
    if isinstance(layers[-1].bias, nn.Parameter):
        layers[-1].bias.copy_(offset)
    elif norm is not None and norm.running_mean is not None:
        norm.running_mean -= offset


def fit_layers(
    layers: Sequence[Any],
    form: str,
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    biased: bool,
    ridge: float,
    generator: torch.Generator,
) -> Tensor | None:
    """Fits the weights of the layers of a stand-in, in place; see `fit_implants`.

    Args:
        layers: First to last.
        form: Of the stand-in.
        inputs: By batch: what the first layer reads if the form is `low-rank`, else what the last one reads.
        targets: By batch: what the last one should compute.
        biased: Whether an offset can be added to its outputs.
        ridge: See `fit_implants`.
        generator: Draws positions.

    Returns:
        What is to be added to the outputs without their bias, float [channels]; None if nothing is, or if these layers
        cannot be fitted.
    """
    whole = form == "low-rank"
    layer = _joined(layers[0], layers[-1]) if whole else layers[-1]
    if not isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        return None
    layer = copy.copy(layer)
    layer._parameters = dict(layer._parameters)
    bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight))) if biased else None
    layer.register_parameter("bias", bias)
    refit(layer, inputs, Targets(targets), ridge, generator)
    offset = bias.detach() if bias is not None else None
    if whole:
        outputs = torch.cat([_places(layer, layer(x)) for x in inputs]).double()
        mean = outputs.mean(0) if biased else torch.zeros_like(outputs[0])
        moments = (outputs - mean).T @ (outputs - mean)
        main = torch.linalg.eigh(moments).eigenvectors[:, -len(layers[0].weight) :].to(layer.weight.dtype)
        layers[0].weight.copy_((main.T @ layer.weight.flatten(1)).reshape(layers[0].weight.shape))
        layers[-1].weight.copy_(main.reshape(layers[-1].weight.shape))
        if offset is not None:  # the mean is all of the outputs', not only of their projection
            linear = mean.to(main.dtype) - offset
            offset = offset + linear - main @ (main.T @ linear)
    return offset


def _joined(first: Any, last: Any) -> Any:
    """The layer of full rank that computes what two layers in a row do."""
    whole = copy.copy(first)
    whole._parameters = dict(first._parameters)
    product = last.weight.flatten(1) @ first.weight.flatten(1)
    whole.weight = nn.Parameter(product.reshape(-1, *first.weight.shape[1:]))
    return whole


def _places(layer: nn.Module, value: Tensor) -> Tensor:
    """A value as [places, channels]."""
    return value.flatten(0, -2) if isinstance(layer, nn.Linear) else value.transpose(0, 1).flatten(1).T


def norm_behind(program: Program, node: fx.Node) -> _BatchNorm | None:
    """The batch norm with statistics that alone reads a value."""
    users = list(node.users)
    behind = program.graph_module.get_submodule(str(users[0].target)) if users[0].op == "call_module" else None
    if len(users) == 1 and isinstance(behind, _BatchNorm) and behind.running_mean is not None:
        return behind
    return None


def _caller(program: Program, path: str) -> fx.Node:
    """The one node that calls a layer."""
    (node,) = [node for node in program.graph.find_nodes(op="call_module") if node.target == path]
    return node
