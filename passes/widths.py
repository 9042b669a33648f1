"""Widths of normalised streams, on request: embedding channels of transformers, channels of ConvNeXt's stages.

Layer normalisation averages over its channels, so that removing one changes what all others become. Such widths are
frozen unless they are asked for. Then the averages of what is left run over the channels that are left: that is what
`apply` computes, what `mask` computes with weights of 0 and 1, and what gates weigh in between:

    mean = sum(w x) / sum(w),  var = sum(w (x - mean)^2) / sum(w)
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, fx, nn

from .labels.analysis import RELEASED, Analysis
from .program import Program


def release_widths(program: Program) -> Program:
    """The program with its normalised widths free to shrink; nothing else changes, and the weights are shared.

    The step stays in the history, so a saved program, and one that was made smaller, remember it.
    """
    if RELEASED in program.history:
        return program
    return replace(program, history=(*program.history, RELEASED))


class WeightedNorm(nn.Module):
    """Layer normalisation whose averages are weighted.

    Args:
        norm: The layer, normalising the last axis alone; its parameters are shared.
        weigh: From a tensor of ones of the input's shape to the weights, broadcastable to it.
    """

    def __init__(self, norm: nn.LayerNorm, weigh: nn.Module) -> None:
        super().__init__()
        self.norm, self.weigh = norm, weigh

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., channels], normalised."""
        weights = self.weigh(torch.ones_like(x))
        total = weights.sum(-1, keepdim=True)
        centred = x - (weights * x).sum(-1, keepdim=True) / total
        variance = (weights * centred.square()).sum(-1, keepdim=True) / total
        out = centred * torch.rsqrt(variance + self.norm.eps)
        if self.norm.weight is not None:
            out = out * self.norm.weight
        return out if self.norm.bias is None else out + self.norm.bias


class Keep(nn.Module):
    """Ones where channels stay, zeros where they went."""

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept, persistent=False)

    def forward(self, ones: Tensor) -> Tensor:
        """Weights [..., channels]."""
        return ones * self.kept.to(ones.dtype)


def weigh_average(graph_module: fx.GraphModule, node: fx.Node, weigh: nn.Module) -> None:
    """Puts a weighted normalisation in the place of one that a node calls; other calls of it stay."""
    norm = graph_module.get_submodule(str(node.target))
    assert isinstance(norm, nn.LayerNorm)
    name = f"weighted_{node.name}"
    graph_module.add_module(name, WeightedNorm(norm, weigh))
    node.target = name


def silence_averages(program: Program, analysis: Analysis, removed: np.ndarray) -> None:
    """Leaves removed channels out of every average, in place in a program at full size.

    Args:
        program: The program.
        analysis: Its analysis.
        removed: bool [number of label ids]: whether the channel is removed.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    for name, value in analysis.averaged:
        kept = torch.from_numpy(~removed)[analysis.values[value].along(-1)]
        if not bool(kept.all()):
            weigh_average(program.graph_module, nodes[name], Keep(kept.to(nodes[name].meta["val"].device)))
            program.graph_module.recompile()
