"""One factor a unit, fitted in closed form so that a pruned network's outputs come closer to the dense network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...passes.labels.flow import canonical_names
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader, run_batch
from ..sensitivity.gate_jacobian import GateNetwork, Pull, gate_network, visit_batches
from ..sensitivity.output_draws import drawn_root
from ..sensitivity.output_hessian import OutputLoss, Root, rows_of
from ..sensitivity.request import Request

_EXACT = 32
"""Up to so many outputs a sample all are taken; of more, random combinations."""

_DRAWS = 32
_HALVINGS = 4


def squared_outputs(output: Any, target: Any) -> Tensor:
    """Half the squared distance of the outputs from what they are: zero, but its curvature is that of a regression.

    The mean over the batch of the sum over a sample's outputs.
    """
    leaves = [y for y in pytree.tree_leaves(output) if isinstance(y, Tensor) and y.is_floating_point() and y.ndim]
    return sum((0.5 * (y - y.detach()).square().sum() / len(y) for y in leaves), torch.zeros(()))


def fit_gates(
    dense: Program,
    smaller: Program,
    loader: Loader,
    *,
    samples: int = 1024,
    ridge: float = 1e-2,
    rounds: int = 2,
    seed: int = 0,
) -> Program:
    """Scales what every layer reads of every unit so that the outputs agree with those of the dense network.

    With J the derivatives of the outputs in the gates and r what is missing to the dense network's outputs, the gates
    move by (JᵀJ + λ I)⁻¹ Jᵀ r: least squares in the network's outputs, CHITA's regression with the gates of all units
    that stay. A step is halved until the outputs come closer on these samples. The gates are folded into the weights of
    the layers that read the units, and the derivatives taken anew.

    Args:
        dense: The network before pruning.
        smaller: The network after; not changed.
        loader: Batches; only the inputs are used.
        samples: How many samples are read.
        ridge: λ over the mean diagonal of JᵀJ.
        rounds: How often.
        seed: Of random combinations of outputs, where there are many.

    Returns:
        A new program.
    """
    fitted = smaller.clone(step="fit_gates")
    for number in range(rounds):
        request = Request(fitted, loader, squared_outputs, seed + number, samples)
        if not request.groups:
            return fitted
        with gate_network(request) as network:
            gates = _step(network, dense, ridge)
        if gates is None:
            return fitted
        fold_gates(fitted, request, gates)
    return fitted


def fold_gates(program: Program, request: Request, gates: Tensor) -> None:
    """Multiplies the weights that read units by the units' gates, in place.

    Args:
        program: The network.
        request: Says which groups the gates belong to.
        gates: [units of these groups, in order].
    """
    module = program.graph_module
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    names = canonical_names(module)
    by_name = {names[id(tensor)]: tensor for tensor in tensors.values()}
    start = 0
    for group in request.groups:
        own = gates[start : start + group.width]
        start += group.width
        for member in group.members:
            if (member.tensor, member.axis) not in program.analysis.reads:
                continue
            tensor = by_name[member.tensor]
            factor = torch.ones(tensor.shape[member.axis], dtype=torch.float64)
            factor[torch.from_numpy(member.index)] = own.double().cpu()[:, None]
            shape = [-1 if axis == member.axis else 1 for axis in range(tensor.ndim)]
            with torch.no_grad():
                tensor.mul_(factor.reshape(shape).to(tensor.device, tensor.dtype))


def _step(network: GateNetwork, dense: Program, ridge: float) -> Tensor | None:
    """New gates; None if no step brings the outputs closer."""
    units = len(network.columns)
    gram, cross = torch.zeros(units, units, dtype=torch.float64), torch.zeros(units, dtype=torch.float64)
    before = 0.0

    def prepare(out: OutputLoss, number: int) -> tuple[Root, Tensor]:
        missing = _wanted(network, dense, out, number) - out.rows([o.detach() for o in out.outputs])
        few = out.elements <= _EXACT
        return (out.exact_root() if few else drawn_root(out, _DRAWS, network.request.seed + number)), missing

    def work(pull: Pull, prepared: tuple[Root, Tensor], rows: slice) -> tuple[Tensor, ...]:
        root, missing = prepared
        products, residuals = [], []
        for number in range(root.count):
            vector = root.pair(number).left[rows] * root.pair(number).weight[rows].abs().sqrt()
            products.append(pull(vector))
            residuals.append((vector * missing[rows]).sum(1, keepdim=True))
        return torch.stack(products), torch.stack(residuals)

    for visit in visit_batches(network, prepare, work):
        products, residuals = (part.flatten(0, 1).double().cpu() for part in visit.found)
        gram += products.T @ products
        cross += products.T @ residuals[:, 0]
        before += float(residuals.square().sum())
    strength = ridge * float(gram.diagonal().mean())
    if not strength > 0.0:
        return None
    step = torch.linalg.solve(gram + strength * torch.eye(units, dtype=gram.dtype), cross)
    start = _distance(network, dense, torch.ones(units, dtype=torch.float64))
    for _ in range(_HALVINGS):
        gates = 1.0 + step
        if _distance(network, dense, gates) < start:
            return gates
        step = step / 2
    return None


def _wanted(network: GateNetwork, dense: Program, out: OutputLoss, number: int) -> Tensor:
    """What the dense network computes of a batch, as rows."""
    leaves = _leaves(network, dense, number)
    return rows_of([leaves[place] for place in out.places], out.layouts, out.samples)


def _leaves(network: GateNetwork, dense: Program, number: int) -> Sequence[Any]:
    with eval_mode(dense.module()), torch.no_grad():
        batch = network.batches[number]
        return pytree.tree_leaves(run_batch(dense.module(), batch.args, batch.kwargs))


def _distance(network: GateNetwork, dense: Program, gates: Tensor) -> float:
    """Squared distance of all outputs from the dense network's, with the same gates for all samples."""
    values = torch.ones(1, network.gated.units, dtype=network.dtype, device=network.device)
    values[0, network.columns] = gates.to(network.device, network.dtype)
    network.gated.source.values = values
    total = 0.0
    with torch.no_grad():
        for number, batch in enumerate(network.batches):
            found = pytree.tree_leaves(run_batch(network.gated.module, batch.args, batch.kwargs))
            for ours, theirs in zip(found, _leaves(network, dense, number), strict=True):
                if isinstance(ours, Tensor) and ours.is_floating_point():
                    total += float((ours - theirs).double().square().sum())
    return total
