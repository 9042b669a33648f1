"""Taylor: the first-order term of closing the gate of a unit (Molchanov et al. 2017 and 2019, gate form)."""

from __future__ import annotations

import numpy as np

from .gate_jacobian import Moments, by_group, gate_network, visit_batches
from .request import Request
from .table import Sensitivity


def estimate(request: Request, *, per_sample: bool = True) -> Sensitivity:
    """Mean over samples of |g_n|, with g_n the derivative of the sample's loss in the gate of the unit.

    At a minimum of the loss the g_n cancel and say nothing together; their magnitudes do.

    Args:
        request: The question.
        per_sample: Otherwise |mean of g_n|, the magnitude of the gradient of the mean loss.

    Raises:
        UserError: Data, weights or loss cannot be used.
        UnsupportedError: The network mixes the samples of a batch.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    with gate_network(request) as network:
        moments = Moments(network)
        for visit in visit_batches(network, lambda out, _: out.slope(), lambda pull, v, rows: (pull(v[rows]),)):
            moments.add(visit, visit.found[0].abs() if per_sample else visit.found[0])
        mean, error, loss = moments.finish()
        facts = {**network.facts(loss), "score": "mean of |gradient|" if per_sample else "|mean gradient|"}
        return Sensitivity("taylor", "score", by_group(network, np.abs(mean), error), facts)
