"""Group Fisher: squared per-sample gradients of the gates (Liu et al., "Group Fisher Pruning", ICML 2021)."""

from __future__ import annotations

from .gate_jacobian import Moments, by_group, gate_network, visit_batches
from .request import Request
from .table import Sensitivity


def estimate(request: Request) -> Sensitivity:
    """½ · mean over samples of g_n², with g_n the derivative of the sample's loss in the gate of the unit.

    That is the second-order Taylor term of closing the gate with the Hessian replaced by the empirical Fisher matrix
    (their equation 4): the gradients of all layers that read a unit are summed before they are squared, since they
    share the gate.

    Raises:
        UserError: Data, weights or loss cannot be used.
        UnsupportedError: The network mixes the samples of a batch.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    with gate_network(request) as network:
        moments = Moments(network)
        for visit in visit_batches(network, lambda out, _: out.slope(), lambda pull, v, rows: (pull(v[rows]),)):
            moments.add(visit, visit.found[0].square() / 2)
        mean, error, loss = moments.finish()
        return Sensitivity("gate-fisher", "loss", by_group(network, mean, error), network.facts(loss))
