"""N:M sparsity: at most N of M neighbours along the axis that a layer sums over.

Sparse tensor cores, and so TensorRT, take 2:4 along the input channels: for every output channel and every position of
the kernel, two of four consecutive input channels are zero (NVIDIA, "Accelerating inference with sparsity", 2021).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import Refused, UserError
from .variables import Variable, Variables


@dataclass(frozen=True)
class NM:
    """Keeps N of every M; tensors that M does not divide stay dense.

    Attributes:
        kept: N.
        group: M.
        index: int64 [groups, M]: the weights of each group.
        dense: bool [p]: weights in no group.
    """

    kept: int
    group: int
    index: Tensor
    dense: Tensor

    def project(self, values: Tensor) -> Tensor:
        """See `Constraint`."""
        index = self.index.to(values.device)
        mask = self.dense.to(values.device, copy=True)
        best = values.abs()[index].topk(self.kept, dim=1).indices
        mask[index.gather(1, best)] = True
        return mask

    def rivals(self, gradient: Tensor, support: Tensor) -> Tensor:
        """See `Constraint`."""
        outside = gradient.abs().masked_fill(support, 0.0)
        found = torch.zeros_like(outside)
        index = self.index.to(outside.device)
        found[index] = outside[index].max(1, keepdim=True).values.expand_as(index)
        return found

    @classmethod
    def of(cls, variables: Variables, kept: int, group: int) -> tuple[NM, dict[str, Refused]]:
        """The constraint, and which tensors stay dense and why.

        Raises:
            UserError: N:M makes no sense, or no tensor can have it.
        """
        _check(kept, group)
        indices, refused = [], {}
        dense = torch.zeros(variables.size, dtype=torch.bool)
        for item in variables:
            width = item.shape[item.input_axis]
            if width % group:
                refused[item.name] = Refused(f"its {width} input channels are no multiple of {group}")
                dense[item.span] = True
            else:
                indices.append(_groups(item, group))
        if not indices:
            raise UserError(
                f"no layer has input channels that are a multiple of {group}",
                where="sparsify.pattern",
                why="; ".join(f"{name}: {why}" for name, why in refused.items()),
            )
        return cls(kept, group, torch.cat(indices), dense), refused


def parse_pattern(text: str) -> tuple[int, int]:
    """N and M of `"2:4"`.

    Raises:
        UserError: It is nothing of the sort, or makes no sense.
    """
    kept, _, group = text.partition(":")
    if not (kept.isdecimal() and group.isdecimal()):
        raise UserError(f"a pattern is written N:M, not {text!r}", where="sparsify.pattern", hint="pattern: 2:4")
    _check(int(kept), int(group))
    return int(kept), int(group)


def _check(kept: int, group: int) -> None:
    if not 0 < kept < group:
        raise UserError(
            f"a pattern {kept}:{group} removes nothing or everything",
            where="sparsify.pattern",
            hint="2:4 keeps two of four",
        )


def holds_pattern(weight: Tensor, kept: int, group: int, axis: int = 1) -> bool:
    """Whether a weight has at most N of M neighbours along an axis; False if M does not divide it."""
    if weight.shape[axis] % group:
        return False
    groups = weight.movedim(axis, -1).unflatten(-1, (-1, group))
    return bool(((groups != 0).sum(-1) <= kept).all())


def _groups(item: Variable, group: int) -> Tensor:
    """int64 [groups, M] of positions in the vector."""
    position = torch.arange(item.span.start, item.span.stop).view(item.shape)
    return position.movedim(item.input_axis, -1).reshape(-1, group)
