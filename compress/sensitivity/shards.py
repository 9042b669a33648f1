"""Shares probes between the processes of a `torchrun`; alone, one process does them all."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def my_share(count: int) -> range:
    """The numbers below `count` that fall to this process."""
    if dist.is_available() and dist.is_initialized():
        return range(dist.get_rank(), count, dist.get_world_size())
    return range(count)


def gather(rows: Tensor, device: torch.device) -> Tensor:
    """Rows of which each process filled its own share, the others zero: complete on every process, bit for bit.

    Args:
        rows: On the CPU.
        device: Where the process group communicates.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return rows
    complete = rows.to(device)
    dist.all_reduce(complete)
    return complete.cpu()
