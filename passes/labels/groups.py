"""Units and groups: what can be removed whole, and what of every tensor has to go with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ...errors import Refused


class Role(StrEnum):
    """What a tensor does for a unit.

    PRODUCE: a weight slice that computes the unit (output axis of convolution or linear; also depthwise weights).
    CONSUME: a weight slice that reads it (input axis). `mask` silences units here.
    CARRY: anything else indexed by it: bias, batch norm parameters and statistics, channel-wise scales.
    """

    PRODUCE = "produce"
    CONSUME = "consume"
    CARRY = "carry"


@dataclass(frozen=True)
class Member:
    """The part of one tensor that belongs to a group.

    Attributes:
        tensor: Dotted name of the parameter or buffer in the graph module.
        axis: The axis along which units lie.
        role: What the tensor does for the units.
        index: int64 array [width, multiplicity]: positions on `axis` that belong to each unit.
    """

    tensor: str
    axis: int
    role: Role
    index: np.ndarray


@dataclass(frozen=True)
class Group:
    """Units that play the same role everywhere in the network, so that only their number decides the shapes.

    Units are in the same group if they lie on exactly the same axes, of tensors and of values, with the same
    multiplicity. The width of an axis is the sum over the groups on it of `width * multiplicity`; aligned groups
    therefore give aligned axes.

    Attributes:
        name: Module path of the first producer (unique within a program).
        width: Number of units.
        members: Every tensor slice that goes with the units.
        frozen: Why no unit may be removed, or None.
    """

    name: str
    width: int
    members: tuple[Member, ...]
    frozen: Refused | None = None

    @property
    def units(self) -> range:
        """Indices of the units."""
        return range(self.width)

    @property
    def producers(self) -> tuple[Member, ...]:
        """Members that compute the units."""
        return tuple(m for m in self.members if m.role is Role.PRODUCE)
