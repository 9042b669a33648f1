"""The weights that may become zero, as one long vector."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from ...errors import Refused, UserError, did_you_mean
from ...passes.program import Program

_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)

_RECURRENT = ("lstm", "gru", "rnn")


@dataclass(frozen=True)
class Variable:
    """One weight tensor.

    Attributes:
        name: Dotted name of the parameter.
        shape: Its shape.
        start: Where it begins in the vector.
        input_axis: The axis along which its layer sums.
    """

    name: str
    shape: torch.Size
    start: int
    input_axis: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.shape.numel()

    @property
    def span(self) -> slice:
        """Where it lies in the vector."""
        return slice(self.start, self.start + self.size)


@dataclass(frozen=True)
class Variables:
    """All of them, in the order of the network's parameters.

    Attributes:
        items: The tensors.
        refused: Weights that stay as they are, and why, by name; also those of other layers.
    """

    items: tuple[Variable, ...]
    refused: Mapping[str, Refused]

    def __iter__(self) -> Iterator[Variable]:
        return iter(self.items)

    @cached_property
    def size(self) -> int:
        """Length of the vector."""
        return sum(item.size for item in self.items)

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return [item.name for item in self.items]

    def tensors(self, program: Program) -> dict[str, Tensor]:
        """The weights themselves, detached but not copied, by name."""
        return {item.name: _parameter(program.graph_module, item.name).detach() for item in self.items}

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One vector [p] of values by name."""
        return torch.cat([tensors[item.name].reshape(-1) for item in self.items])

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Views of a vector [p], by name and in the tensors' shapes."""
        return {item.name: vector[item.span].view(item.shape) for item in self.items}

    def read(self, program: Program) -> Tensor:
        """The weights of a program as a new vector [p].

        Raises:
            UserError: One is NaN or infinite.
        """
        tensors = self.tensors(program)
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise UserError("a weight is NaN or infinite", where=name, hint="load a sound checkpoint")
        return self.flatten(tensors).float()

    def write(self, program: Program, vector: Tensor) -> None:
        """Puts a vector [p] into a program, in place."""
        with torch.no_grad():
            for name, values in self.split(vector).items():
                _parameter(program.graph_module, name).copy_(values)


def find_variables(program: Program, ignore: Sequence[str] = ()) -> Variables:
    """The weights of all convolutions and linear layers.

    A weight that several layers share is one variable. Frozen weights (`requires_grad=False`) stay as they are.

    Args:
        program: The network.
        ignore: Patterns of names (`fc.weight`, `layer1.*`) that stay as they are.

    Raises:
        UserError: A pattern matches nothing, or no weight is left.
    """
    module = program.graph_module
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}
    axes = {
        id(layer.weight): 0 if isinstance(layer, _LAYERS[4:]) else 1
        for layer in layers.values()
        if isinstance(layer.weight, Tensor)
    }
    found = {name: weight for name, weight in module.named_parameters() if id(weight) in axes}
    aliases = {name: weight for name, weight in module.named_parameters(remove_duplicate=False) if id(weight) in axes}
    others = _others(program, found)
    refused = _refused(found, aliases, others, ignore)
    items: list[Variable] = []
    start = 0
    for name, weight in found.items():
        if name not in refused:
            items.append(Variable(name, weight.shape, start, axes[id(weight)]))
            start += weight.numel()
    if not items:
        reasons = "; ".join(f"{name}: {why}" for name, why in (others | refused).items())
        raise UserError(
            "there is no weight that could become zero",
            where="sparsify",
            why=reasons or "the network has no convolution or linear layer",
            hint="check ignore, and requires_grad of the parameters",
        )
    return Variables(tuple(items), others | refused)


def _others(program: Program, found: Mapping[str, Tensor]) -> dict[str, Refused]:
    """Matrices, tables and the like that belong to no convolution and no linear layer."""
    module = program.graph_module
    readers: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            for user in node.users:
                if isinstance(user.target, OpOverload):
                    readers[str(node.target)] = user.target._schema.name
    refused: dict[str, Refused] = {}
    for name, weight in module.named_parameters():
        if name in found or weight.ndim < 2:
            continue  # of one axis are biases and normalisation, which nobody expects to become sparse
        kind = readers.get(name, "").removeprefix("aten::").partition("_")[0]
        if kind in _RECURRENT:
            refused[name] = Refused(f"a recurrent layer ({kind.upper()}) feeds its result back, step after step")
        elif isinstance(module.get_submodule(name.rpartition(".")[0]), nn.Embedding | nn.EmbeddingBag):
            refused[name] = Refused("an embedding is looked up, not multiplied with")
        else:
            refused[name] = Refused("it is no weight of a convolution or linear layer")
    return refused


def _refused(
    found: Mapping[str, Tensor], aliases: Mapping[str, Tensor], others: Iterable[str], ignore: Sequence[str]
) -> dict[str, Refused]:
    refused: dict[str, Refused] = {}
    for pattern in ignore:
        hits = {id(weight) for name, weight in aliases.items() if fnmatch.fnmatchcase(name, pattern)}
        if not hits and not fnmatch.filter(others, pattern):
            raise UserError(
                f"the pattern {pattern!r} matches no weight{did_you_mean(pattern, aliases)}",
                where="sparsify.ignore",
                why=f"there is {', '.join(list(aliases)[:8])}{', …' * (len(aliases) > 8)}",
            )
        refused |= {name: Refused(f"ignored by {pattern!r}") for name, weight in found.items() if id(weight) in hits}
    for name, weight in found.items():
        if weight.is_complex() or not weight.is_floating_point():
            refused[name] = Refused(f"its type is {weight.dtype}")
        elif not weight.requires_grad:
            refused.setdefault(name, Refused("it is frozen", name, "set requires_grad before capture"))
    return refused


def _parameter(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(name)
