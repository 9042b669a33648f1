"""A budget of weights and one of multiply-adds together (FALCON, Meng et al. 2024, arXiv:2403.07094).

To keep the weights with the largest sum of importances I_i subject to Σ z_i ≤ S and Σ f_i z_i ≤ F is a linear program
with two constraints. Its dual is convex in one multiplier μ, the price of a multiply-add: at each price the S largest
positive I_i - μ f_i are kept. The price is found by bisection, and what the budgets then leave is filled greedily.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError
from ...passes.program import Program
from .constraints import check_sparsity
from .variables import Variables

_HALVINGS = 60


@dataclass(frozen=True)
class WeightsAndMacs:
    """At most so many weights, with at most so many multiply-adds.

    Attributes:
        kept: S.
        macs: F.
        cost: f, multiply-adds of every weight, float32 [p].
        spans: Where the tensors lie.
        floor: What every tensor keeps at least.
    """

    kept: int
    macs: float
    cost: Tensor
    spans: tuple[slice, ...]
    floor: int = 1

    def project(self, values: Tensor) -> Tensor:
        """See `Constraint`: importances are the squares of the values."""
        gain, cost = values.double().square(), self.cost.to(values.device).double()
        forced = torch.zeros_like(gain, dtype=torch.bool)
        for span in self.spans if self.floor else ():
            forced[torch.topk(gain[span], min(self.floor, span.stop - span.start)).indices + span.start] = True
        weights = self.kept - int(forced.sum())
        macs = self.macs - float(cost[forced].sum())
        free = gain.masked_fill(forced, 0.0)
        mask = self._at_price(free, cost, 0.0, weights)
        if float(cost[mask].sum()) > macs:
            low, high = 0.0, float((free / cost).max()) + 1.0
            for _ in range(_HALVINGS):
                price = 0.5 * (low + high)
                mask = self._at_price(free, cost, price, weights)
                low, high = (price, high) if float(cost[mask].sum()) > macs else (low, price)
            mask = self._at_price(free, cost, high, weights)
            mask = _fill(mask, free, cost, weights, macs)
        return mask | forced

    def rivals(self, gradient: Tensor, support: Tensor) -> None:
        """With two budgets no single weight decides."""
        return None

    @staticmethod
    def _at_price(gain: Tensor, cost: Tensor, price: float, count: int) -> Tensor:
        worth = gain - price * cost
        mask = torch.zeros_like(gain, dtype=torch.bool)
        best = worth.topk(min(max(count, 0), len(worth)), sorted=False)
        mask[best.indices[best.values > 0]] = True
        return mask

    @classmethod
    def of(cls, program: Program, variables: Variables, sparsity: float, macs: float) -> WeightsAndMacs:
        """Budgets as shares of the dense network's.

        Args:
            program: The network, for the number of positions where each weight is used.
            variables: The weights.
            sparsity: Share of weights to remove.
            macs: Share of multiply-adds to keep.

        Raises:
            UserError: A share is out of range, or the multiply-adds would not do for one weight a layer.
        """
        check_sparsity(sparsity)
        if not 0.0 < macs < 1.0:
            raise UserError(f"macs must lie between 0 and 1, not {macs}", where="sparsify.macs", hint="0.5 halves them")
        cost = weight_costs(program, variables)
        spans = tuple(item.span for item in variables)
        least = float(sum(cost[span][0] for span in spans))
        budget = macs * float(cost.double().sum())
        kept = int((1.0 - sparsity) * variables.size + 1e-6)
        if budget < least or kept < len(spans):
            raise UserError(
                "these budgets would empty whole layers",
                where="sparsify.macs, sparsify.sparsity",
                why=f"one weight a layer takes {len(spans)} weights and {least:.0f} multiply-adds",
                hint="allow more",
            )
        return cls(kept, budget, cost, spans)


def weight_costs(program: Program, variables: Variables) -> Tensor:
    """Multiply-adds of every weight for one sample, float32 [p]: the positions where it is used."""
    cost = torch.zeros(variables.size)
    by_name = {item.name: item for item in variables}
    parameters = {id(p): name for name, p in program.graph_module.named_parameters()}
    for node in program.graph.nodes:
        if node.op != "call_module":
            continue
        layer = program.graph_module.get_submodule(str(node.target))
        item = by_name.get(parameters.get(id(getattr(layer, "weight", None)), ""))
        if item is None:
            continue
        # A linear layer works on every position in front of its features, a convolution on every pixel.
        value = node.meta["val"]
        examples = int(value.shape[0])
        channel = -1 if len(item.shape) == 2 else 1
        reads = node.all_input_nodes[0].meta["val"] if type(layer).__name__.startswith("ConvTranspose") else value
        positions = int(reads.numel()) // (int(reads.shape[channel]) * examples)
        cost[item.span] += positions
    return cost


def _fill(mask: Tensor, gain: Tensor, cost: Tensor, count: int, macs: float) -> Tensor:
    """Adds weights while both budgets allow: of every cost the best, the cost with the best of all first."""
    mask = mask.clone()
    count -= int(mask.sum())
    macs -= float(cost[mask].sum())
    left = {float(price): (~mask & (cost == price) & (gain > 0)).nonzero()[:, 0] for price in torch.unique(cost)}
    left = {price: same for price, same in left.items() if len(same)}
    for price, same in sorted(left.items(), key=lambda item: -float(gain[item[1]].max())):
        room = min(count, int(macs // price)) if price else count
        take = same[gain[same].topk(min(max(room, 0), len(same))).indices]
        mask[take] = True
        count, macs = count - len(take), macs - price * len(take)
    return mask
