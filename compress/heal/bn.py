"""Re-estimation of batch-norm statistics: exact population statistics of the network as it is now."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...errors import UserError
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, empty_loader, run_batch, split_batch
from .device import device_of, to_device


def reestimate_batch_norm(program: Program, loader: Loader, *, samples: int = 2048) -> Program:
    """Replaces running means and variances by those of the data; weights stay.

    After channels were removed, the statistics in the layers behind them no longer describe their inputs (Wu and
    Johnson 2021, arXiv:2105.07576, "precise BN"). Means are averaged over samples; variances are those of the whole
    population: the mean variance inside the batches plus the variance of the batch means. Layers in front of a batch
    norm normalise by the batch itself, as in training. Dropout is off.

    Args:
        program: Stays as it is.
        loader: Training batches.
        samples: Stops after the batch that reaches this many.

    Returns:
        A new program. A program without batch norm comes back unchanged.

    Raises:
        UserError: The loader is empty, or a batch norm reads NaN or infinities.
    """
    program = program.clone(step="reestimate_batch_norm")
    module = program.module()
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return program
    meters = [_Meter(norm) for norm in norms]
    device, seen = device_of(module), 0
    with eval_mode(module), torch.no_grad():
        handles = [norm.register_forward_pre_hook(meter.read) for norm, meter in zip(norms, meters, strict=True)]
        for norm in norms:
            norm.training = True
        for batch in loader:
            args, kwargs, _ = to_device(split_batch(batch), device)
            run_batch(module, args, kwargs)
            leaves = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.Tensor) and leaf.ndim]
            seen += leaves[0].shape[0] if leaves else 1
            if seen >= samples:
                break
        for handle in handles:
            handle.remove()
        if seen == 0:
            raise empty_loader(loader)
        if not all(meter.finite for meter in meters):
            raise UserError(
                "what a batch norm reads is not finite",
                where="batch-norm statistics",
                hint="look for NaN in the training data and for values that overflow in the network",
            )
        for meter in meters:
            meter.write()
    return program


class _Meter:
    """Moments of what a batch norm reads, in float64, merged batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self, norm: _BatchNorm) -> None:
        self.norm = norm
        self.momentum, norm.momentum = norm.momentum, 0.0
        self.count = 0
        self.mean = torch.zeros(norm.num_features, dtype=torch.float64)
        self.square = torch.zeros(norm.num_features, dtype=torch.float64)

    def read(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Adds a batch: [batch, channels, …]."""
        x = inputs[0].detach().transpose(0, 1).flatten(1)
        variance, mean = torch.var_mean(x.float(), dim=1, correction=0)
        mean, variance, count = mean.double().cpu(), variance.double().cpu(), x.shape[1]
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.square = self.square + variance * count + delta**2 * (self.count * count / total)
        self.count = total

    @property
    def finite(self) -> bool:
        """Whether all that was read is finite."""
        return bool(torch.isfinite(self.mean).all() and torch.isfinite(self.square).all())

    def write(self) -> None:
        """Puts the population's mean and unbiased variance into the layer."""
        norm = self.norm
        norm.momentum = self.momentum
        assert norm.running_mean is not None and norm.running_var is not None
        if self.count:
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.square / max(self.count - 1, 1))
