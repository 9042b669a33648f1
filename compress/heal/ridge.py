"""Reconstruction: the weights that remain take over, in closed form, what those that were removed did."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from ...passes.labels.selection import Keep, check_keep, kept_positions
from ...passes.program import Program
from ...passes.shapes import eval_mode, flatten_inputs
from ..data import Loader
from ..sensitivity.batches import Batch, read_batches
from .device import device_of

_EQUATIONS_PER_WEIGHT = 64
"""Places (pixels of all images) drawn for every input of a layer: more change little but the time."""

_VALUE_BYTES = 1 << 30
"""A value of all samples, of which several are held at a time, takes at most this."""

_PATCH_ELEMENTS = 1 << 24
"""Patches of so many numbers are unfolded at a time."""


def reconstruct(
    dense: Program,
    smaller: Program,
    keep: Keep,
    loader: Loader,
    *,
    samples: int = 1024,
    ridge: float = 1e-3,
    seed: int = 0,
    progress: Callable[..., Any] | None = None,
) -> Program:
    """Refits every convolution and linear layer of a pruned network to the outputs of the dense one.

    Layer after layer, W minimises Σ ‖y − W x‖² + λ ‖W − W₀‖², where x is what the layer reads in the pruned network
    (whose earlier layers are refitted already), y what the dense layer computes in the channels that remain, and W₀ its
    weights as they are. So each layer makes up for the channels that it lost and for the error that reaches it (channel
    pruning by least squares: He, Zhang and Sun 2017, arXiv:1707.06168; here with all remaining inputs and a pull
    towards the old weights). No gradient is needed. Both networks run once, in step: the values of all samples
    move from layer to layer together.

    Layers whose shape hides which outputs belong together (grouped, transposed and 3-d convolutions) stay as they are.

    Args:
        dense: The network before pruning.
        smaller: `apply(dense, keep)`; not changed.
        keep: Kept units by group name.
        loader: Batches; only the inputs are used.
        samples: How many samples are read at most; fewer where one value of all of them would take more than 1 GiB.
        ridge: λ over the mean diagonal of Σ x xᵀ.
        seed: Of the positions that are drawn where an image has more than are needed.
        progress: Told `progress(done, total)` after every layer.

    Returns:
        A new program. Batch-norm statistics are those of before; re-estimate them.
    """
    refitted = smaller.clone(step="reconstruct")
    rows = _kept_outputs(dense, keep)
    batches = read_batches(loader, min(samples, _affordable(dense)), dense, device_of(dense.module()))
    generator = torch.Generator().manual_seed(seed)
    with eval_mode(dense.module()), eval_mode(refitted.module()), torch.no_grad():
        wanted, found = _Lockstep(dense, batches), _Lockstep(refitted, batches)
        layers = [node for node in refitted.graph.nodes if _refittable(refitted, node)]
        for done, node in enumerate(layers, start=1):
            inputs = found.inputs_of(node.name)
            outputs = wanted.outputs_of(node.name)
            layer = refitted.graph_module.get_submodule(str(node.target))
            kept = rows.get(str(node.target))
            if kept is not None:
                index = torch.from_numpy(kept)
                axis = -1 if isinstance(layer, nn.Linear) else 1
                outputs = [y.index_select(axis, index.to(y.device)) for y in outputs]
            _refit(layer, inputs, outputs, ridge, generator)  # type: ignore[arg-type]
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


def _refittable(program: Program, node: fx.Node) -> bool:
    """Whether a node is the only call of a layer whose outputs are one linear map of patches of its input."""
    if node.op != "call_module" or sum(other.target == node.target for other in program.graph.nodes) > 1:
        return False
    layer = program.graph_module.get_submodule(str(node.target))
    if isinstance(layer, nn.Conv1d | nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros"
    return isinstance(layer, nn.Linear)


def _kept_outputs(dense: Program, keep: Keep) -> Mapping[str, np.ndarray]:
    """Kept output positions by module path, where a layer lost some."""
    positions = kept_positions(dense.analysis, check_keep(dense.analysis, keep))
    lost = {name.rpartition("."): axes[0] for name, axes in positions.items() if 0 in axes}
    return {path: rows for (path, _, name), rows in lost.items() if name == "weight"}


class _Run(fx.Interpreter):
    """One batch on its way through a network."""

    def __init__(self, program: Program, batch: Batch) -> None:
        super().__init__(program.graph_module)
        self.args_iter = iter(flatten_inputs(program.graph_module, batch.args, dict(batch.kwargs)))

    def step(self, node: fx.Node) -> None:
        """Evaluates a node, and forgets what nothing reads any more."""
        self.env[node] = self.run_node(node)
        for dead in self.user_to_last_uses.get(node, []):
            del self.env[dead]


class _Lockstep:
    """All batches on their way through a network, one node at a time."""

    def __init__(self, program: Program, batches: Sequence[Batch]) -> None:
        self.runs = [_Run(program, batch) for batch in batches]
        self.ahead = deque(program.graph.nodes)

    def inputs_of(self, name: str) -> list[Tensor]:
        """What the node of this name is about to read, by batch."""
        while self.ahead[0].name != name:
            self._step()
        return [run.env[self.ahead[0].all_input_nodes[0]] for run in self.runs]

    def outputs_of(self, name: str) -> list[Tensor]:
        """What the node of this name computes, by batch."""
        self.inputs_of(name)
        node = self._step()
        return [run.env[node] for run in self.runs]

    def _step(self) -> fx.Node:
        node = self.ahead.popleft()
        for run in self.runs:
            run.step(node)
        return node


def _refit(
    layer: nn.Conv1d | nn.Conv2d | nn.Linear,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    ridge: float,
    generator: torch.Generator,
) -> None:
    """Solves for the weights (and bias) of one layer, in place; see `reconstruct`."""
    width = layer.weight[0].numel() + (layer.bias is not None)
    old = layer.weight.flatten(1).double()
    if layer.bias is not None:
        old = torch.cat([old, layer.bias.double()[:, None]], 1)
    gram = old.new_zeros(width, width)
    cross = old.new_zeros(len(old), width)
    places = sum(y.numel() for y in outputs) // len(old)
    share = min(1.0, _EQUATIONS_PER_WEIGHT * width / places)
    for x, y in zip(inputs, outputs, strict=True):
        for patches, targets in _equations(layer, x, y, share, generator):
            if layer.bias is not None:
                patches = F.pad(patches, (0, 1), value=1.0)
            gram += (patches.T @ patches).double()
            cross += (targets.T @ patches).double()
    strength = ridge * float(gram.diagonal().mean())
    if not math.isfinite(strength) or strength <= 0.0:
        return  # Nothing reaches the layer: nothing to learn from.
    change = torch.cholesky_solve((cross - old @ gram).T, torch.linalg.cholesky(_plus_diagonal(gram, strength))).T
    new = (old + change).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.copy_(new[:, -1])
        new = new[:, :-1]
    layer.weight.copy_(new.reshape(layer.weight.shape))


def _plus_diagonal(matrix: Tensor, value: float) -> Tensor:
    return matrix + value * torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _equations(
    layer: nn.Conv1d | nn.Conv2d | nn.Linear, x: Tensor, y: Tensor, share: float, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of inputs [places, inputs of the layer] and outputs [places, channels], a random share of all places."""
    if isinstance(layer, nn.Linear):
        yield x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
        return
    x = F.pad(x, layer._reversed_padding_repeated_twice) if isinstance(layer.padding, str) else F.pad(x, _pads(layer))
    if isinstance(layer, nn.Conv1d):
        x, y = x.unsqueeze(2), y.unsqueeze(2)
    kernel, stride, dilation = (_two(getattr(layer, n)) for n in ("kernel_size", "stride", "dilation"))
    count = y.shape[2] * y.shape[3]
    drawn = torch.randperm(count, generator=generator)[: max(1, round(share * count))].to(x.device)
    images = max(1, _PATCH_ELEMENTS // (layer.weight[0].numel() * count))
    for part, target in zip(x.split(images), y.flatten(2).split(images), strict=True):
        patches = F.unfold(part, kernel, dilation=dilation, stride=stride)[..., drawn]
        yield patches.transpose(1, 2).flatten(0, 1), target[..., drawn].transpose(1, 2).flatten(0, 1)


def _pads(layer: nn.Conv1d | nn.Conv2d) -> list[int]:
    """Padding in the order of `F.pad`: last axis first, both ends."""
    return [int(p) for p in reversed(layer.padding) for _ in range(2)]


def _two(values: Sequence[int]) -> tuple[int, int]:
    """A setting of a convolution for two axes."""
    return (1, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))
