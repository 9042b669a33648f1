"""First- and second-order Taylor terms of removing weights, from one Hessian-vector product: for OBA and SOSP."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from .batches import Batch, read_batches
from .chunks import Chunks
from .hvp import attention_fact, differentiable, gradients, producing_weights, product
from .request import Request
from .shards import gather, my_share


@dataclass(frozen=True)
class Terms:
    """Taylor terms of every unit and batch; w is the vector of all weights that can be removed, p those of a unit.

    Attributes:
        slope: float64 [batches, units]: Σ_{i in p} w_i g_i, with g the gradient of the mean loss of the batch.
        curvature: float64 [batches, units]: ½ Σ_{i in p} w_i (Hw)_i, with H its Hessian.
        shares: float64 [batches]: the batch's share of all samples.
        facts: What they were measured on.
    """

    slope: np.ndarray
    curvature: np.ndarray
    shares: np.ndarray
    facts: dict[str, Any]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the samples of values [batches, units]."""
        return self.shares @ values

    def error(self, values: np.ndarray) -> np.ndarray:
        """Standard error of `mean(values)` from the spread over batches; zero if there is only one."""
        count = len(self.shares)
        if count < 2:
            return np.zeros(values.shape[1])
        squares = (self.shares**2) @ (values - self.mean(values)) ** 2
        return np.sqrt(squares * count / (count - 1))


def taylor_terms(request: Request) -> Terms:
    """One product H w a batch, batch norm in evaluation mode; under `torchrun` the processes share the batches.

    Raises:
        UserError: Data, weights or loss cannot be used.
        UnsupportedError: An operation has no second derivative.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    start = time.perf_counter()
    weights = producing_weights(request)
    vectors = weights.removable()
    batches = read_batches(request.loader, request.samples, request.program, weights.device)
    chunks = Chunks(request.program.static_batch)

    def work(batch: Batch) -> Tensor:
        loss, gradient = gradients(request, batch, weights.tensors)
        hessian = product(gradient, weights.tensors, vectors)
        slope = [torch.zeros_like(v) if g is None else v * g.detach() for v, g in zip(vectors, gradient, strict=True)]
        curvature = [v * h / 2 for v, h in zip(vectors, hessian, strict=True)]
        terms = torch.stack([weights.per_unit(slope), weights.per_unit(curvature)])
        return torch.cat([terms, torch.full((2, 1), loss, dtype=torch.float64)], 1)

    mine = my_share(len(batches))
    rows = torch.zeros(len(batches), 2, weights.units + 1, dtype=torch.float64)
    with differentiable(request.program.graph_module, weights.tensors):
        for done, number in enumerate(mine, start=1):
            rows[number] = chunks.run(batches[number], work)
            if request.progress:
                request.progress(done, len(mine), loss=float(rows[number, 0, -1]))
    rows = gather(rows, weights.device)
    if not bool(torch.isfinite(rows).all()):
        raise UserError(
            "a derivative of the loss is NaN or infinite", where="rank", why="the second derivative overflows"
        )
    sizes = np.array([batch.size for batch in batches], dtype=np.float64)
    shares = sizes / sizes.sum()
    facts = {
        "samples": int(sizes.sum()),
        "batches": len(batches),
        "mean_loss": float(shares @ rows[:, 0, -1].numpy()),
        "device": str(weights.device),
        "dtype": weights.dtypes,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "seconds": round(time.perf_counter() - start, 3),
        **chunks.facts(),
        **attention_fact(request),
    }
    return Terms(rows[:, 0, :-1].numpy(), rows[:, 1, :-1].numpy(), shares, facts)
