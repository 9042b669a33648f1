"""One training in several processes (`torchrun`): shared batches, summed gradients, one batch norm."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from ...errors import UnsupportedError, UserError
from .state import tensors_of


@dataclass(frozen=True)
class Share:
    """What one process computes of a batch.

    Attributes:
        args: Positional inputs.
        kwargs: Keyword inputs.
        target: Whatever the loss takes.
        weight: Of its mean loss in that of the whole batch; the weights of all processes sum to 1.
        whole: Every process computes the whole batch: it has fewer samples than there are processes.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    target: Any
    weight: float = 1.0
    whole: bool = True


class Replicas:
    """The processes that train one network; one process alone does everything itself, and nothing is communicated.

    Every process reads the same batches and takes its part of the samples of each, so that the training is the one that
    a single process would do: the loss and the gradient are those of the whole batch, and so are the statistics of
    batch norm, forward and backward (Peng et al. 2018, arXiv:1711.07240, "cross-GPU batch normalization"). A loss has
    to be a mean over samples; dropout draws other masks than a single process would.

    Attributes:
        rank: Number of this process.
        count: Number of processes.
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def begin(self, module: nn.Module, static_batch: str | None) -> None:
        """Gives every process the weights of the first.

        Raises:
            UnsupportedError: The network takes batches of one size only, which cannot be shared.
        """
        if self.count == 1:
            return
        if static_batch is not None:
            raise UnsupportedError(
                "a network with a fixed batch size cannot be trained in several processes",
                where="training",
                why=f"{static_batch}; each of {self.count} processes would get a part of a batch",
                hint="train in one process, or capture it with a dynamic batch",
            )
        for tensor in tensors_of(module).values():
            dist.broadcast(tensor.data, src=0)

    def agree(self, epoch: int) -> None:
        """Checks that every process continues from the same epoch.

        Raises:
            UserError: Some found the state of an earlier training, others did not.
        """
        if len(set(self._gathered(epoch))) > 1:
            raise UserError(
                "the processes continue from different epochs",
                where="training state",
                why=f"they found the states of epochs {self._gathered(epoch)}",
                hint="put the run on a file system that all of them share, or remove the state",
            )

    def share(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any) -> Share:
        """This process's part of a batch: consecutive samples, as many as the others get, give or take one.

        Raises:
            UserError: The processes did not read the same batch.
        """
        if self.count == 1:
            return Share(args, kwargs, target)
        leaves = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs), target)) if isinstance(leaf, Tensor)]
        if len(set(self._gathered(_checksum(leaves)))) > 1:
            raise UserError(
                "the processes read different batches",
                where="data factory",
                why="each takes its part of the same batch, so all must read the same ones in the same order",
                hint="shuffle by set_epoch(epoch) or torch's global random numbers, and use no DistributedSampler",
            )
        inputs = [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.ndim]
        size = inputs[0].shape[0] if inputs else 0
        if size < self.count:
            return Share(args, kwargs, target, 1.0 / self.count)
        start, end = (size * number // self.count for number in (self.rank, self.rank + 1))

        def part(leaf: Tensor) -> Tensor:
            return leaf[start:end] if leaf.ndim and leaf.shape[0] == size else leaf

        args, kwargs, target = pytree.tree_map_only(Tensor, part, (args, dict(kwargs), target))
        return Share(args, kwargs, target, (end - start) / size, whole=False)

    @contextmanager
    def running(self, module: nn.Module, share: Share, *seed: int) -> Iterator[None]:
        """The forward and backward pass of a share: joint batch norm, and random numbers of its own.

        What the network draws must not reach the loader, which has to draw the same in every process.
        """
        if self.count == 1:
            yield
            return
        norms = [] if share.whole else [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
        mixed = np.random.SeedSequence([*seed, 0 if share.whole else self.rank])
        with torch.random.fork_rng():
            torch.manual_seed(int(mixed.generate_state(1)[0]))
            for norm in norms:
                norm.forward = partial(_joint_batch_norm, norm)  # type: ignore[method-assign]
            try:
                yield
            finally:
                for norm in norms:
                    del norm.forward

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sums tensors of one type over the processes, in place and at once."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, found in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(found.view_as(tensor))

    def sum_gradients(self, parameters: Iterator[nn.Parameter]) -> None:
        """Sums gradients over the processes; a parameter that took no part in the loss has none anywhere."""
        if self.count > 1:
            self.sum([parameter.grad for parameter in parameters if parameter.grad is not None])

    def from_first(self, *values: float) -> tuple[float, ...]:
        """Numbers as the first process has them, so that all decide alike."""
        if self.count == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64, device=_device())
        dist.broadcast(shared, src=0)
        return tuple(shared.tolist())

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def _gathered(self, number: int) -> list[int]:
        if self.count == 1:
            return [number]
        mine = torch.tensor([number], dtype=torch.int64, device=_device())
        found = [torch.zeros_like(mine) for _ in range(self.count)]
        dist.all_gather(found, mine)
        return [int(one) for one in found]


class _Sum(torch.autograd.Function):
    """The sum of a tensor over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Sums."""
        found = x.clone()
        dist.all_reduce(found)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        """Sums the gradients."""
        found = grad.clone()
        dist.all_reduce(found)
        return found


def _joint_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm over the samples of all processes, [batch, channels, …].

    Mean and variance take two sums, which autograd sums over the processes again on the way back.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
    values = x.float()
    count = values.new_tensor([values.numel() // values.shape[1]])
    dist.all_reduce(count)
    mean = _Sum.apply(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(axes)) / count
    if norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked.add_(1)
            rate = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean), rate)
            unbiased = variance * count / (count - 1).clamp_min(1)
            norm.running_var.lerp_(unbiased.to(norm.running_var), rate)
    scale = (variance + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight
    out = centred * scale.view(shape)
    return (out if norm.bias is None else out + norm.bias.view(shape)).to(x.dtype)


def _checksum(leaves: Sequence[Tensor]) -> int:
    value = 0
    for leaf in leaves:
        data = leaf.detach().cpu().contiguous()
        value = zlib.crc32(repr((tuple(data.shape), data.dtype)).encode(), value)
        value = zlib.crc32(data.flatten().view(torch.uint8).numpy().data if data.numel() else b"", value)
    return value


def _device() -> torch.device:
    """Where the process group communicates."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
