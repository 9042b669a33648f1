"""Mask: the oracle of `apply`. Full size, removed units silenced where they are read, implanted filters replaced."""

from __future__ import annotations

import numpy as np
import torch

from .implant import replace_filters
from .implant_form import Implants
from .labels.analysis import Analysis
from .labels.flow import canonical_names
from .labels.selection import Keep, check_keep
from .program import Program
from .widths import silence_averages


def mask(
    program: Program,
    keep: Keep,
    *,
    implants: Implants | None = None,
    init: str = "center",
    analysis: Analysis | None = None,
) -> Program:
    """The program at full size, with removed units silenced: the weights that read them are zero.

    Computes the same function as `apply(program, keep)`. With implants, the filters of implanted units are replaced by
    those that their stand-ins amount to: the same function as `implant(program, implants, keep=keep)`.

    Args:
        program: The program; not changed.
        keep: Kept units by group name; groups that are not named are kept whole.
        implants: What stands in for which units, by group name.
        init: Weights of the stand-ins; see `implant`.
        analysis: Analysis of the program, if made with other rules than the built-in ones.

    Raises:
        UserError: An unknown or frozen group, a wrong index, or a group that would be emptied.
    """
    analysis = analysis or program.analysis
    kept = check_keep(analysis, keep)
    silenced = program.clone(step="mask")
    module = silenced.graph_module
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    names = canonical_names(module)
    by_name = {names[id(tensor)]: tensor for tensor in tensors.values()}
    for group in analysis.groups:
        if group.name not in kept:
            continue
        lost = np.setdiff1d(np.arange(group.width), kept[group.name])
        for member in group.members:
            if (member.tensor, member.axis) in analysis.reads:
                index = torch.from_numpy(member.index[lost].reshape(-1))
                tensor = by_name[member.tensor]
                with torch.no_grad():
                    tensor.index_fill_(member.axis, index.to(tensor.device), 0)
    silence_averages(silenced, analysis, analysis.removed_ids(kept))
    if implants:
        replace_filters(silenced, implants, init)
    return silenced
