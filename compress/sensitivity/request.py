"""What every estimator is asked: the one interface that the files of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...passes.labels.groups import Group, Member
from ...passes.program import Program
from ..data import Loader, LossFn

Progress = Callable[..., Any]
"""Called as `progress(done, total, **info)`."""


@dataclass(frozen=True)
class Request:
    """A question to an estimator.

    Attributes:
        program: The network; never changed.
        loader: Batches; None if there is no data.
        loss: Mean loss of a batch; None if there is no data.
        seed: Seed of everything random.
        samples: At most this many samples are read.
        probes: Random vectors of a stochastic estimator.
        progress: Told how far it is.
        temperature: The loss is evaluated where the outputs are divided by this, by the estimators that know it.
    """

    program: Program
    loader: Loader | None = None
    loss: LossFn | None = None
    seed: int = 0
    samples: int = 512
    probes: int = 64
    progress: Progress | None = None
    temperature: float = 1.0

    @property
    def groups(self) -> Sequence[Group]:
        """The groups that get a score: those that may shrink and that some weight produces."""
        return [group for group in self.program.groups if group.frozen is None and group.producers]

    def tensor(self, member: Member) -> Tensor:
        """The parameter of a member.

        Raises:
            UserError: It holds NaN or infinity.
        """
        path, _, name = member.tensor.rpartition(".")
        tensor = getattr(self.program.graph_module.get_submodule(path), name)
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(
                "a weight is NaN or infinite",
                where=member.tensor,
                why="sensitivities of broken weights mean nothing",
                hint="load a sound checkpoint",
            )
        return tensor


def per_unit(values: Tensor, member: Member) -> Tensor:
    """Sums elementwise values of a member's tensor over the slice of each unit.

    Args:
        values: Of the shape of the tensor.
        member: Which positions of which axis belong to each unit.

    Returns:
        [width], of the dtype and on the device of `values`.
    """
    along = values.movedim(member.axis, 0).reshape(values.shape[member.axis], -1).sum(1)
    return along[torch.as_tensor(member.index, device=values.device)].sum(1)


def slice_size(tensor: Tensor, member: Member) -> int:
    """Elements of the tensor that belong to one unit."""
    return tensor.numel() // tensor.shape[member.axis] * member.index.shape[1]
