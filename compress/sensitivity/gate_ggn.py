"""Gate GGN: the Gauss-Newton matrix of the loss in the gates, one gate a unit wherever it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from .gate_jacobian import GateNetwork, Moments, Pull, by_group, gate_network, visit_batches
from .output_draws import drawn_root
from .output_hessian import EIGENVECTORS, KINDS, OutputLoss, Root
from .request import Request
from .shards import gather
from .table import Sensitivity

_EXACT = 32
_DRAWS = 32
_TEMPERATURE = 4.0
_MOST_UNITS = 20_000


def estimate(
    request: Request,
    *,
    draws: int | None = None,
    temperature: float | None = None,
    first_order: bool = False,
    interactions: bool = False,
) -> Sensitivity:
    """½ h_uu, with h = mean over samples of J_nᵀ H_n J_n, the Gauss-Newton matrix of the gates.

    J_n is the derivative of a sample's outputs in its gates, H_n the Hessian of its loss in the outputs, taken from
    the loss alone, whatever that is. With Σ_r s_r z_r z_rᵀ = H_n one backward pass of z_r, without gradients of
    weights, gives the share of r for all samples and units of a batch: h_uu = mean over n of Σ_r s_r (J_nᵀ z_r)_u².
    With few outputs a sample the z are eigenvectors and the result is exact; with many they are drawn at random, for
    the same expectation.

    By itself H_n is taken at temperature 4: where the outputs are a fourth of what they are. For a cross entropy it is
    the Hessian of the distillation loss 16 KL (Hinton et al. 2015, arXiv:1503.02531), without labels. A trained network
    is sure of its answers, so that its loss is flat but for the few samples where an answer would change; at a higher
    temperature every change of the outputs counts, which ranks better (benchmarks/RESULTS.md). It is no rise of the
    loss any more: the estimates are scores then. A squared error has the same Hessian at every temperature.

    The Hessian of a loss that is not convex in the outputs has negative directions; they count as what they are, so
    that an estimate may come out negative. The facts say how many samples have some.

    Args:
        request: The question.
        draws: Random vectors a sample; 0 for the exact matrix; by itself exact up to 32 outputs a sample, else 32.
        temperature: Of the loss; 1 is the loss itself. By itself 4, or 1 with the first-order term.
        first_order: Adds the first-order term -g_u: what is not zero away from a minimum. Needs temperature 1.
        interactions: Gives the matrix of all units with all units too.

    Raises:
        UserError: Data, weights, loss or an option cannot be used.
        UnsupportedError: The network or the loss mixes the samples of a batch.
        EnvironmentLacksError: Memory does not suffice for one sample.
    """
    if draws is not None and (isinstance(draws, bool) or not isinstance(draws, int) or draws < 0):
        raise UserError(f"draws must be a whole number, at least 0, not {draws!r}", where="rank.draws")
    if temperature is None:
        temperature = 1.0 if first_order else _TEMPERATURE
    if not 0 < temperature < float("inf"):
        raise UserError(
            f"a temperature is a positive number, not {temperature!r}",
            where="rank.temperature",
            hint="1 is the loss itself, 4 what networks are often distilled at",
        )
    if first_order and temperature != 1:
        raise UserError(
            f"the first-order term is that of the loss itself, not of the loss at temperature {temperature:g}",
            where="rank.temperature",
            hint="leave out one of first_order and temperature, or set temperature: 1",
        )
    units = sum(group.width for group in request.groups)
    if interactions and units > _MOST_UNITS:
        raise UserError(
            f"interactions of {units} units are too many",
            where="rank.interactions",
            why=f"the matrix would have {units * units * 8 / 2**30:.0f} GiB",
            hint=f"leave them out; up to {_MOST_UNITS} units are possible",
        )
    with gate_network(replace(request, temperature=temperature)) as network:
        work = _Work(network, draws, first_order, interactions)
        moments = Moments(network)
        matrix = torch.zeros(units if interactions else 0, units if interactions else 0, dtype=torch.float64)
        samples = int(network.sizes.sum())
        for visit in visit_batches(network, work.prepare, work.run):
            moments.add(visit, visit.found[0])
            if interactions:
                left, right = (part.flatten(0, 1) for part in visit.found[1:])
                product = (left.T @ right).double().cpu() / (2 * samples)
                matrix += (product + product.T) / 2
        mean, error, loss = moments.finish()
        facts = {**network.facts(loss), **work.facts(), "temperature": temperature}
        if temperature != 1:
            del facts["mean_loss"]
        whole = _with_diagonal(gather(matrix, network.device).numpy(), mean) if interactions else None
        unit = "loss" if temperature == 1 else "score"
        return Sensitivity("gate-ggn", unit, by_group(network, mean, error), facts, whole)


def _with_diagonal(matrix: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """The diagonal as it was estimated: with the first-order term, if that is asked for."""
    np.fill_diagonal(matrix, diagonal)
    return matrix


class _Work:
    """What is done with every batch."""

    def __init__(self, network: GateNetwork, draws: int | None, first_order: bool, interactions: bool) -> None:
        """Args as those of `estimate`."""
        self._network, self._draws = network, draws
        self._first_order, self._interactions = first_order, interactions
        # Of each batch: outputs of a sample, vectors, is the loss curved, negative samples, kinds of vectors.
        self._seen = torch.zeros(len(network.batches), 4 + len(KINDS), dtype=torch.float64)

    def prepare(self, out: OutputLoss, number: int) -> tuple[Tensor, Root]:
        """The gradient of the loss in the outputs, and the pairs of which the Hessian is the sum."""
        state = np.random.SeedSequence([self._network.request.seed, number]).generate_state(1, np.uint64)[0]
        seed = int(state >> 2)
        curved = out.curved(torch.Generator().manual_seed(seed))
        draws = self._draws if self._draws is not None else 0 if out.elements <= _EXACT else _DRAWS
        root = drawn_root(out, draws, seed) if draws else out.exact_root()
        kinds = [float(kind in root.kinds) for kind in KINDS]
        self._seen[number] = torch.tensor([out.elements, root.count, curved, root.negative, *kinds])
        return out.slope(), root

    def run(self, pull: Pull, prepared: tuple[Tensor, Root], rows: slice) -> tuple[Tensor, ...]:
        """Estimates [samples, units]; and, for interactions, the products of the vectors [vectors, samples, units]."""
        slope, root = prepared
        total = torch.zeros(rows.stop - rows.start, len(self._network.columns), device=slope.device, dtype=slope.dtype)
        lefts, rights = [total.new_zeros(0, *total.shape)], [total.new_zeros(0, *total.shape)]
        if self._first_order:
            total -= pull(slope[rows])
        for number in range(root.count):
            pair = root.pair(number)
            left = pull(pair.left[rows])
            right = (left if pair.right is None else pull(pair.right[rows])) * pair.weight[rows]
            total += left * right / 2
            if self._interactions:
                lefts.append(left[None])
                rights.append(right[None])
        return (total, torch.cat(lefts), torch.cat(rights)) if self._interactions else (total,)

    def facts(self) -> dict[str, Any]:
        """How it was done.

        Raises:
            UserError: The loss has no second derivative on any batch.
        """
        seen = gather(self._seen, self._network.device)
        outputs, vectors, curved = (int(value) for value in seen[:, :3].amax(0))
        kinds = [kind for kind, count in zip(KINDS, seen[:, 4:].sum(0).tolist(), strict=True) if count]
        drawn = kinds != [EIGENVECTORS]
        if not curved:
            raise UserError(
                "the loss has no second derivative in the outputs of the network",
                where="loss",
                why="it is linear in them, piece by piece, as an L1 loss is",
                hint="rank by gate-fisher or taylor, which need its gradient only",
            )
        return {
            "exact": not drawn,
            "outputs": outputs,
            "draws": vectors if drawn else 0,
            "vectors": vectors,
            "root": ", ".join(kinds),
            "samples_with_negative_curvature": None if drawn else int(seen[:, 3].sum()),
            "first_order": self._first_order,
        }
