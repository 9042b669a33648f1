"""Reconstruction: the weights that remain take over, in closed form, what those that were removed did."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ...errors import UserError
from ...passes.implant import Rows, implant
from ...passes.implant_form import Implants
from ...passes.labels.selection import Keep, check_keep, kept_positions
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader
from ..sensitivity.batches import read_batches
from .device import device_of
from .lockstep import Lockstep, schedule
from .refit import Layer, Targets, refit
from .tail import tails_of

_VALUE_BYTES = 1 << 30
"""A value of all samples, of which several are held at a time, takes at most this."""


def reconstruct(
    dense: Program,
    smaller: Program,
    keep: Keep,
    loader: Loader,
    *,
    samples: int = 1024,
    implants: Implants | None = None,
    ridge: float = 1e-3,
    tails: bool = True,
    free: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: Callable[..., Any] | None = None,
) -> Program:
    """Refits every convolution and linear layer of a pruned network to the outputs of the dense one.

    Layer after layer, W minimises Σ ‖t − W x‖² + λ ‖W − W₀‖², where x is what the layer reads in the pruned network
    (whose earlier layers are refitted already), t what the dense layer computes in the channels that remain, and W₀ its
    weights as they are. So each layer makes up for the channels that it lost and for the error that reaches it (channel
    pruning by least squares: He, Zhang and Sun 2017, arXiv:1707.06168; here with all remaining inputs and a pull
    towards the old weights). No gradient is needed. Both networks run once, in step: the values of all samples
    move from layer to layer together.

    With `tails`, what a layer's output goes through next is minded too. Where it is added to a skip connection, the
    sum is what has to agree with the dense network, so that errors of the skip connection are made up for and do not
    pile up from block to block. Where a ReLU follows, everything below zero is as good as anything else below zero
    (Zhang et al. 2016, arXiv:1505.06798): such targets follow the prediction, and the layer is solved for again.

    Layers whose shape hides which outputs belong together (grouped, transposed and 3-d convolutions), whose weights
    are shared or frozen stay as they are, and so do frozen biases.

    Args:
        dense: The network before pruning.
        smaller: `apply(dense, keep)`, or that with other weights, or with implants; not changed.
        keep: Kept units by group name.
        implants: What stands in for which units. Of a stand-in of several layers, the last is refitted.
        loader: Batches; only the inputs are used.
        samples: How many samples are read at most; fewer where one value of all of them would take more than 1 GiB.
        ridge: λ over the mean diagonal of Σ x xᵀ.
        tails: Whether sums and ReLUs behind a layer are minded.
        free: By name of a weight, bool of its shape: where it may change. A layer without any is left as it is.
        seed: Of the positions that are drawn where an image has more than are needed.
        progress: Told `progress(done, total)` after every layer.

    Raises:
        UserError: A value that a layer reads or should give is NaN or infinite.

    Returns:
        A new program. Batch-norm statistics are those of before; re-estimate them.
    """
    refitted = smaller.clone(step="reconstruct")
    rows = implant(dense, implants, keep=keep).rows if implants else _kept_outputs(dense, keep)
    callers = {str(node.target): node.name for node in dense.graph.find_nodes(op="call_module")}
    batches = read_batches(loader, min(samples, _affordable(dense)), dense, device_of(dense.module()))
    generator = torch.Generator().manual_seed(seed)
    layers = [node for node in refitted.graph.nodes if refittable(refitted, node) and _layer(rows, node) in callers]
    names = {node.name for node in dense.graph.nodes}
    found_tails = tails_of(refitted, layers, names) if tails else {}
    after = {name: [tail.other] for name, tail in found_tails.items() if tail.other}
    with eval_mode(dense.module()), eval_mode(refitted.module()), torch.no_grad():
        wanted, found = Lockstep(dense, batches, after), Lockstep(refitted, batches, after)
        order = {node.name: place for place, node in enumerate(schedule(refitted.graph, after))}
        source, outputs = "", []
        for done, node in enumerate(sorted(layers, key=lambda node: order[node.name]), start=1):
            mask = (free or {}).get(f"{node.target}.weight")
            frozen = not refitted.graph_module.get_parameter(f"{node.target}.weight").requires_grad
            if frozen or (mask is not None and not bool(mask.any())):
                continue
            # A layer and the implant beside it, which comes next, are fitted to outputs of the same dense layer.
            if _layer(rows, node) != source:
                source = _layer(rows, node)
                outputs = wanted.outputs_of(callers[source])
            inputs = found.inputs_of(node.name)
            layer = refitted.graph_module.get_submodule(str(node.target))
            assert isinstance(layer, Layer)
            kept = rows[str(node.target)].index if str(node.target) in rows else None

            def remaining(values: list[Tensor], layer: Any = layer, kept: Any = kept) -> list[Tensor]:
                if kept is None:
                    return values
                index = torch.from_numpy(kept)
                axis = -1 if isinstance(layer, nn.Linear) else 1
                return [y.index_select(axis, index.to(y.device)) for y in values]

            tail, skips = found_tails.get(node.name), None
            if tail is not None and node.name in after:
                skips = list(zip(remaining(wanted.value(tail.other)), found.value(tail.other), strict=True))
            targets = Targets(remaining(outputs), tail, skips)
            if not refit(layer, inputs, targets, ridge, generator, mask):
                raise UserError(
                    "a layer reads, or should compute, values that are not finite",
                    where=str(node.target),
                    why="least squares takes finite numbers",
                    hint="look for NaN in the data and for values that overflow in the network",
                )
            if progress:
                progress(done, len(layers))
    return refitted


def _affordable(program: Program) -> int:
    """Samples whose largest value still fits."""
    leaves = pytree.tree_leaves((program.example_args, dict(program.example_kwargs)))
    examples = next((leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), 1)
    values = (leaf for node in program.graph.nodes for leaf in pytree.tree_leaves(node.meta.get("val")))
    sizes = [value.numel() * value.element_size() for value in values if isinstance(value, Tensor)]
    return max(1, _VALUE_BYTES * examples // max(sizes, default=1))


def refittable(program: Program, node: fx.Node) -> bool:
    """Whether a node is a layer whose outputs are one linear map of patches of its input.

    Nothing else may read its weight: a second call, a tied layer, an operation.
    """
    if node.op != "call_module":
        return False
    layer = program.graph_module.get_submodule(str(node.target))
    if not isinstance(layer, Layer):
        return False
    if sum(layer.weight is tensor for tensor in _read_tensors(program)) > 1:
        return False
    return isinstance(layer, nn.Linear) or (layer.groups == 1 and layer.padding_mode == "zeros")


def _read_tensors(program: Program) -> Iterator[Tensor]:
    """The parameters that nodes read: one as often as there are readers."""
    module = program.graph_module
    for node in program.graph.nodes:
        if node.op == "call_module":
            yield from module.get_submodule(str(node.target)).parameters()
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            value = getattr(module.get_submodule(owner), name, None)
            if isinstance(value, Tensor):
                yield value


def _layer(rows: Mapping[str, Rows], node: fx.Node) -> str:
    """Path of the dense layer whose outputs those of a layer are."""
    path = str(node.target)
    return rows[path].layer if path in rows else path


def _kept_outputs(dense: Program, keep: Keep) -> Mapping[str, Rows]:
    """Kept output positions by module path, where a layer lost some."""
    positions = kept_positions(dense.analysis, check_keep(dense.analysis, keep))
    lost = {name.rpartition("."): axes[0] for name, axes in positions.items() if 0 in axes}
    return {path: Rows(path, rows) for (path, _, name), rows in lost.items() if name == "weight"}
