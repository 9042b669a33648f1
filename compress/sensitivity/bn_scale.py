"""BN scale: small scales of batch norm go first (Liu et al., "Network Slimming", ICCV 2017)."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from ...passes.labels.groups import Group, Member
from .request import Request
from .table import Scores, Sensitivity


def estimate(request: Request) -> Sensitivity:
    """Mean of |γ| over all channels of batch norms that carry a unit; needs no data, and is no loss.

    The published method trains with an L1 penalty on γ first; this ranks the network as it is. Groups that no batch
    norm with a scale carries have no score: the planner keeps them whole, and the facts name them.

    Raises:
        UserError: No group that may shrink has a batch norm, or a scale is NaN or infinite.
    """
    groups, without = {}, []
    for group in request.groups:
        scales = [_scales(request, member) for member in _norms(request, group)]
        if scales:
            groups[group.name] = Scores(np.concatenate(scales, 1).mean(1), np.zeros(group.width))
        else:
            without.append(group.name)
    if without and not groups:
        raise UserError(
            "no batch norm carries a unit of this network",
            where="rank.method",
            why="method bn-scale ranks by the scales of batch norms, and there are none (or they were folded)",
            hint="take method='magnitude', which needs no data either",
        )
    return Sensitivity(
        "bn-scale", "score", groups, {"score": "mean |scale| of the batch norms", "groups_without_batch_norm": without}
    )


def _norms(request: Request, group: Group) -> list[Member]:
    """The scales of batch norms that go with a group."""
    found = []
    for member in group.members:
        path, _, name = member.tensor.rpartition(".")
        if name == "weight" and isinstance(request.program.graph_module.get_submodule(path), _BatchNorm):
            found.append(member)
    return found


def _scales(request: Request, member: Member) -> np.ndarray:
    """|γ| [width, multiplicity] of the channels of each unit."""
    with torch.no_grad():
        return request.tensor(member).double().abs().cpu().numpy()[member.index]
