"""The program: a captured network as an ordinary, trainable `fx.GraphModule`, with what is known about it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

if TYPE_CHECKING:
    from .labels.analysis import Analysis
    from .labels.groups import Group


@dataclass(frozen=True)
class Program:
    """A captured network.

    Every convolution, linear layer, normalisation, embedding and dropout is a `call_module` node that holds a real
    `nn` module under the user's own dotted name; everything else is a `call_function` node on an ATen op (or
    `operator`), `get_attr`, `placeholder` or `output`.

    Attributes:
        graph_module: The network; called with the same arguments as the user's model.
        example_args: Positional example inputs (any nesting of tensors), batch in axis 0.
        example_kwargs: Keyword example inputs.
        static_batch: Why the batch axis is fixed, or None if it is dynamic.
        history: Names of the passes that made this program, oldest first.
        dynamic: Further axes that may change their length between calls, by argument of forward.
        notes: What the user's model does in training only, and this program never.

    Nodes carry `meta["val"]` (fake tensor at the example's sizes), `meta["path"]` (module path) and
    `meta["source"]` (the user's file and line).
    """

    graph_module: fx.GraphModule
    example_args: tuple[Any, ...]
    example_kwargs: Mapping[str, Any] = field(default_factory=dict)
    static_batch: str | None = None
    history: tuple[str, ...] = ()
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def module(self) -> fx.GraphModule:
        """The callable network."""
        return self.graph_module

    @property
    def graph(self) -> fx.Graph:
        """The graph of the network."""
        return self.graph_module.graph

    def train(self) -> Program:
        """Puts the network in training mode, in place."""
        self.graph_module.train()
        return self

    def eval(self) -> Program:
        """Puts the network in evaluation mode, in place."""
        self.graph_module.eval()
        return self

    def clone(self, *, step: str | None = None) -> Program:
        """A deep copy (weights too), with `step` appended to its history."""
        with warnings.catch_warnings():
            # torch deprecates a class of its own that copying its input signature still touches.
            warnings.filterwarnings("ignore", message=".*LeafSpec.*", category=FutureWarning)
            graph_module = copy.deepcopy(self.graph_module)
        return replace(self, graph_module=graph_module, history=self.history + ((step,) if step else ()))

    def run_example(self) -> Any:
        """Runs the network on its example inputs, without gradients."""
        with torch.no_grad():
            return self.graph_module(*self.example_args, **self.example_kwargs)

    @cached_property
    def analysis(self) -> Analysis:
        """Channel labels, units and groups of this program (computed once)."""
        from .labels.analysis import analyse

        return analyse(self)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of units that can be removed, and those that cannot with the reason."""
        return self.analysis.groups

    def save(self, directory: str | Path, *, pt2: bool = False) -> None:
        """Writes the program without pickle: `graph.json` and tensors as safetensors (see `serialize`).

        Args:
            directory: A directory for the program alone.
            pt2: Writes a `program.pt2` of `torch.export.save` as well, for readers without secateur.
        """
        from .serialize import save

        save(self, Path(directory), pt2=pt2)

    @staticmethod
    def load(directory: str | Path) -> Program:
        """Reads a program that `save` wrote; needs none of the user's classes."""
        from .serialize import load

        return load(Path(directory))
