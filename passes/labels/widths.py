"""What the axes of convolution and linear weights consist of: the input of cost models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..program import Program
from .flow import canonical_names


@dataclass(frozen=True)
class AxisTerms:
    """The width of an axis as a sum: `fixed + Σ multiplicity * kept units of the group`.

    Attributes:
        size: Width now.
        terms: (group name, multiplicity) of every group on the axis whose units can be removed.
        fixed: Positions that always stay: they belong to no group, or to a frozen one.
    """

    size: int
    terms: tuple[tuple[str, int], ...]
    fixed: int

    def width(self, kept: Mapping[str, int]) -> int:
        """The width for given numbers of kept units of every group on the axis."""
        return self.fixed + sum(kept[name] * multiplicity for name, multiplicity in self.terms)


def axis_terms(program: Program) -> dict[str, tuple[AxisTerms, AxisTerms]]:
    """Axes 0 and 1 of the weight of every convolution and linear layer, by the weight's canonical name.

    Convolution and linear weights have their outputs on axis 0 and their inputs (of one group) on axis 1; transposed
    convolutions the reverse.
    """
    found: dict[tuple[str, int], list[tuple[str, int]]] = {}
    for group in program.groups:
        if group.frozen is None:
            for member in group.members:
                found.setdefault((member.tensor, member.axis), []).append((group.name, member.index.shape[1]))
    widths = {group.name: group.width for group in program.groups}
    names = canonical_names(program.graph_module)
    result: dict[str, tuple[AxisTerms, AxisTerms]] = {}
    for module in program.graph_module.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            name = names[id(module.weight)]
            axes = []
            for axis in (0, 1):
                terms = tuple(found.get((name, axis), ()))
                size = module.weight.shape[axis]
                axes.append(AxisTerms(size, terms, size - sum(widths[g] * m for g, m in terms)))
            result[name] = (axes[0], axes[1])
    return result
