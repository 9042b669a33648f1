"""Which share of the parameters can be removed, and why the rest cannot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from secateur.passes.labels.groups import Group, Role
from secateur.passes.program import Program


@dataclass(frozen=True)
class Shares:
    """Parameters of a program by what may happen to them.

    Attributes:
        params: Their number.
        prunable: Share that lies on at least one unit that may be removed.
        frozen: Share of those left, by the reason of the group that holds them: first what computes, then what reads.
        unlabelled: Share that belongs to no unit: rows of an embedding, tables of positions, single weights.
    """

    params: int
    prunable: float
    frozen: dict[str, float]
    unlabelled: float


def shares(program: Program) -> Shares:
    """Counts the parameters of every tensor by the groups on its axes."""
    groups = program.groups
    counted: Counter[str | None] = Counter()
    total = prunable = 0
    named = {id(tensor): name for name, tensor in reversed(list(program.graph_module.named_parameters()))}
    tensors = dict(program.graph_module.named_parameters())
    for name in dict.fromkeys(named.values()):
        shape = tuple(tensors[name].shape)
        free, held = _axes(groups, name, shape)
        size = int(np.prod(shape))
        left = size * float(np.prod([1 - f.mean() for f in free])) if shape else size
        total += size
        prunable += size - left
        reasons = _reasons(free, held)
        for reason, part in reasons.items():
            counted[reason] += left * part  # type: ignore[assignment]
    frozen = {reason: count / total for reason, count in counted.most_common() if reason and count >= 1e-9 * total}
    return Shares(total, prunable / total, frozen, counted[None] / total)


def _axes(
    groups: tuple[Group, ...], tensor: str, shape: tuple[int, ...]
) -> tuple[list[np.ndarray], list[list[tuple[Role, str, np.ndarray]]]]:
    """By axis: which positions can be removed, and the frozen positions with role and reason."""
    free = [np.zeros(size, dtype=bool) for size in shape]
    held: list[list[tuple[Role, str, np.ndarray]]] = [[] for _ in shape]
    for group in groups:
        for member in group.members:
            if member.tensor != tensor:
                continue
            if group.frozen is None:
                free[member.axis][member.index.reshape(-1)] = True
            else:
                held[member.axis].append((member.role, group.frozen.reason, member.index.reshape(-1)))
    return free, held


def _reasons(free: list[np.ndarray], held: list[list[tuple[Role, str, np.ndarray]]]) -> dict[str | None, float]:
    """Shares of the positions that cannot be removed by reason; None where there is none. They add up to 1."""
    order = sorted(range(len(held)), key=lambda axis: not any(role is Role.PRODUCE for role, _, _ in held[axis]))
    for axis in order:
        stay = int((~free[axis]).sum())
        if held[axis] and stay:
            parts: Counter[str | None] = Counter()
            for _, reason, index in held[axis]:
                parts[reason] += len(np.unique(index)) / stay  # type: ignore[assignment]
            known = sum(parts.values())
            if known < 1:
                parts[None] += 1 - known  # type: ignore[assignment]
            return dict(parts)
    return {None: 1.0}
