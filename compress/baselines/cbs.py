"""The combinatorial brain surgeon (Yu, Serra, Ramalingam and Zhe 2022, arXiv:2203.04466).

CBS-S looks for the pruned set P with the least S(P) = w_Pᵀ H_PP w_P by swaps, H being the empirical Fisher inside each
layer. CBS-U then solves for all remaining weights together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from ..chita.backsolve import backsolve
from ..chita.constraints import TopK
from ..chita.data_matrix import StoredMatrix, stored
from ..chita.stage import Stage
from ..chita.variables import Variables

STARTS = 20
"""Random partitions for the start; the paper takes up to 50."""

ROUNDS = 50
PATIENCE = 5
"""Rounds without a lower training loss before the search ends."""

EPSILON, WINDOW, MISSES = 1e-4, 10, 20
"""The paper's ε, ρ and τ."""

_CHUNK = 64


def prune(stage: Stage) -> Tensor:
    """The weights [p] after selection and update.

    Raises:
        UserError: The pattern is another than the largest of all weights together.
    """
    if not isinstance(stage.constraint, TopK):
        raise UserError(
            "cbs swaps weights of all layers", where="sparsify.method", hint="leave out pattern, block, macs and scope"
        )
    matrix = stored(stage.problem.matrix, "cbs")
    w, constraint = stage.problem.center, stage.constraint
    keep = random_start(stage, constraint)
    best, least = keep, stage.loss_of(torch.where(keep, w, 0.0))
    idle = 0
    search = Swaps.of(matrix, w, stage.variables)
    for _ in range(ROUNDS):
        moved = search.round(keep)
        if bool((moved == keep).all()):
            break
        keep = moved
        loss = stage.loss_of(torch.where(keep, w, 0.0))
        if loss < least:
            best, least, idle = keep, loss, 0
        elif (idle := idle + 1) >= PATIENCE:
            break
    return backsolve(stage.problem, best).w


def random_start(stage: Stage, constraint: TopK) -> Tensor:
    """Of random partitions into about √p parts, each pruned by magnitude, that of the least loss ("RMP"): bool [p]."""
    w = stage.problem.center
    generator = torch.Generator().manual_seed(stage.seed)
    parts = min(1000, max(1, round(len(w) ** 0.5)))
    best, least = constraint.project(w), float("inf")
    for number in range(STARTS):
        # The first start is magnitude pruning itself.
        keep = best if number == 0 else _partition_mask(w, parts, constraint.kept, generator)
        loss = stage.loss_of(torch.where(keep, w, 0.0))
        if loss < least:
            best, least = keep, loss
    return best


@dataclass(frozen=True)
class Swaps:
    """Local search over which weights are pruned.

    Attributes:
        matrix: A.
        w: [p].
        curvature: H_ii, [p].
        layer: Number of the tensor of every weight, [p].
        spans: Where the tensors lie.
    """

    matrix: StoredMatrix
    w: Tensor
    curvature: Tensor
    layer: Tensor
    spans: tuple[slice, ...]

    @classmethod
    def of(cls, matrix: StoredMatrix, w: Tensor, variables: Variables) -> Swaps:
        """The search for some weights."""
        spans = tuple(item.span for item in variables)
        layer = torch.cat([torch.full((s.stop - s.start,), i, device=w.device) for i, s in enumerate(spans)])
        return cls(matrix, w, matrix.square_sums() / matrix.rows, layer, spans)

    def value(self, keep: Tensor) -> float:
        """S of the pruned set."""
        pruned = torch.where(keep, 0.0, self.w)
        return float((pruned * self._product(pruned)).double().sum())

    def gains(self, keep: Tensor) -> tuple[Tensor, Tensor]:
        """What S loses if a pruned weight comes back (α), and what it gains if a kept one goes (β): each [p]."""
        cross = 2 * self.w * self._product(torch.where(keep, 0.0, self.w))
        single = self.curvature * self.w.square()
        return cross - single, cross + single

    def round(self, keep: Tensor) -> Tensor:
        """The mask after one batch of swaps, found with the gains of its start: bool [p]."""
        alpha, beta = self.gains(keep)
        out = (~keep).nonzero()[:, 0]
        inside = keep.nonzero()[:, 0]
        out = out[alpha[out].argsort(descending=True, stable=True)]
        inside = inside[beta[inside].argsort(stable=True)]
        keep, taken, misses = keep.clone(), torch.zeros(len(inside), dtype=torch.bool), 0
        for low in range(0, min(len(out), len(inside)), _CHUNK):
            first = out[low : low + _CHUNK]
            begin = max(0, low - WINDOW)
            second = inside[begin : low + _CHUNK + WINDOW]
            gain = alpha[first][:, None] - beta[second][None, :] + self._interaction(first, second)
            for row in range(len(first)):
                columns = slice(max(0, low + row - WINDOW) - begin, low + row + WINDOW + 1 - begin)
                span = taken[begin:][: len(second)][columns]
                if not len(span):
                    continue
                options = gain[row, columns].cpu().masked_fill(span, -torch.inf)
                place = int(options.argmax())
                if float(options[place]) < EPSILON:
                    misses += 1
                    if misses > MISSES:
                        return keep
                    continue
                chosen = (columns.start or 0) + place
                taken[begin + chosen] = True
                keep[first[row]], keep[second[chosen]] = True, False
        return keep

    def _interaction(self, first: Tensor, second: Tensor) -> Tensor:
        """γ = 2 w_i H_ij w_j inside a layer, 0 between layers: [first, second]."""
        inner = self.matrix.columns(first).T @ self.matrix.columns(second) / self.matrix.rows
        same = self.layer[first][:, None] == self.layer[second][None, :]
        return torch.where(same, 2 * self.w[first][:, None] * inner * self.w[second][None, :], 0.0)

    def _product(self, v: Tensor) -> Tensor:
        """H v, layer by layer."""
        parts = []
        for span in self.spans:
            columns = self.matrix.columns(span)
            parts.append(columns.T @ (columns @ v[span]))
        return torch.cat(parts) / self.matrix.rows


def _partition_mask(w: Tensor, parts: int, kept: int, generator: torch.Generator) -> Tensor:
    """The largest of each random part, in all exactly `kept`: bool [p]."""
    order = torch.randperm(len(w), generator=generator).to(w.device)
    keep = torch.zeros_like(w, dtype=torch.bool)
    edges = [len(w) * i // parts for i in range(parts + 1)]
    shares = [kept * i // parts for i in range(parts + 1)]
    for i in range(parts):
        part = order[edges[i] : edges[i + 1]]
        count = min(shares[i + 1] - shares[i], len(part))
        keep[part[w[part].abs().topk(count, sorted=False).indices]] = True
    return keep
