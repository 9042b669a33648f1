"""What becomes of a layer's output next: normalisation, the sum with a skip connection, rectification."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...passes.opnames import name_of
from ...passes.program import Program

_RELU = ("aten.relu.default", "aten.relu_.default")
_ADD = ("aten.add.Tensor", "aten.add_.Tensor", "operator.add")


@dataclass(frozen=True)
class Tail:
    """The layer's output y goes on as scale · y + shift + other, and negative sums are cut off if `rectified`.

    Attributes:
        scale: float64 [channels], of batch norm; ones without.
        shift: float64 [channels].
        other: Node of the other operand of the sum; "" if there is none.
        rectified: Whether a ReLU alone reads the result.
        end: Node of the result, before the ReLU.
    """

    scale: Tensor = field(repr=False)
    shift: Tensor = field(repr=False)
    other: str = ""
    rectified: bool = False
    end: str = ""


def tails_of(program: Program, layers: Sequence[fx.Node], known: Collection[str]) -> dict[str, Tail]:
    """What follows each layer, so that no layer waits for another that waits for it.

    Where two layers meet in a sum, as in a block with a projection on its shortcut, only the last is fitted to it: it
    can make up for what the others lack.

    Args:
        program: The network.
        layers: Nodes of the layers, in the order of the graph.
        known: Names of the nodes that may be waited for.
    """
    found: dict[str, Tail] = {}
    waits: dict[fx.Node, fx.Node] = {}
    by_name = {node.name: node for node in program.graph.nodes}
    for node in reversed(layers):
        tail = tail_of(program, node)
        if tail.other and (tail.other not in known or _depends(by_name[tail.other], node, waits)):
            tail = tail_of(program, node, sums=False)
        if tail.other:
            waits[node] = by_name[tail.other]
        found[node.name] = tail
    return found


def tail_of(program: Program, node: fx.Node, *, sums: bool = True) -> Tail:
    """What follows a convolution or linear layer, as far as each value has one reader; up to a sum if not `sums`."""
    channels = len(program.graph_module.get_parameter(f"{node.target}.weight"))
    scale = torch.ones(channels, dtype=torch.float64)
    shift, other, value = torch.zeros(channels, dtype=torch.float64), "", node
    while (reader := _only_reader(value)) is not None:
        module = program.graph_module.get_submodule(str(reader.target)) if reader.op == "call_module" else None
        if isinstance(module, _BatchNorm) and not other and module.running_mean is not None:
            factor, constant = _affine(module)
            scale, shift = scale * factor, shift * factor + constant
        elif isinstance(module, nn.ReLU) or name_of(reader.target) in _RELU:
            return Tail(scale, shift, other, True, value.name)
        elif sums and not other and (operand := _other_operand(reader, value)) and not _depends(operand, node, {}):
            other = operand.name
        elif not isinstance(module, nn.Dropout | nn.Identity):
            break
        value = reader
    return Tail(scale, shift, other, False, value.name)


def _only_reader(node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    return readers[0] if len(readers) == 1 else None


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode as factor and constant, float64 [channels]."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    constant = -norm.running_mean.double() * factor
    if norm.bias is not None:
        constant = constant + norm.bias.detach().double()
    return factor.cpu(), constant.cpu()


def _other_operand(reader: fx.Node, value: fx.Node) -> fx.Node | None:
    """The other operand if a node adds two values of one shape."""
    if name_of(reader.target) not in _ADD:
        return None
    operands = reader.all_input_nodes
    if len(operands) != 2 or len(reader.args) != 2 or reader.kwargs:
        return None
    other = operands[1] if operands[0] is value else operands[0]
    shapes = [getattr(n.meta.get("val"), "shape", None) for n in (other, value)]
    return other if shapes[0] is not None and shapes[0] == shapes[1] else None


def _depends(node: fx.Node, on: fx.Node, waits: Mapping[fx.Node, fx.Node]) -> bool:
    """Whether a value is computed from another, or waits for it."""
    seen, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current is on:
            return True
        if current not in seen:
            seen.add(current)
            stack.extend(current.all_input_nodes)
            if current in waits:
                stack.append(waits[current])
    return False
