"""What implants would lose: each layer's stand-ins are fitted on the dense network, and their outputs compared.

The score of a unit is the rise of the loss when what it computes becomes zero. To second order that is a quadratic
form of what is missing, so a stand-in that misses the share q of the energy of a unit's values is predicted to raise
the loss by q times the score. The share is measured where the values of the implanted channels join the others again:
behind the batch norm and the activations that alone follow the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from ...passes.implant_branch import chain_of
from ...passes.implant_form import factors, layers
from ...passes.program import Program
from ...passes.shapes import eval_mode
from ..data import Loader
from ..heal.device import device_of
from ..heal.lockstep import Lockstep
from ..sensitivity.batches import read_batches
from .fit import fit_layers, norm_behind
from .offers import Offer, Offers, OfferSite, offer_sites, offers


def offer_implants(
    program: Program,
    loader: Loader,
    form: str = "pointwise",
    *,
    rank: int | None = None,
    init: str = "least-squares",
    **options: Any,
) -> Offers:
    """The implants that a planner can choose from, with what each would lose.

    Args:
        program: The dense program.
        loader: Batches; only the inputs are used.
        form: Form of the implants; see `offers`.
        rank: Their rank; see `offers`.
        init: Where their weights will come from.
        options: Of `measure_losses`.

    Raises:
        UserError: See `offers`.
    """
    return measure_losses(program, offers(program, form, rank, init), loader, **options)


def measure_losses(
    program: Program,
    given: Offers,
    loader: Loader,
    *,
    samples: int = 256,
    ridge: float = 1e-3,
    seed: int = 0,
    progress: Callable[..., Any] | None = None,
) -> Offers:
    """Measures how much of each unit's score its implant would lose; the dense network runs once.

    All units of a group are implanted for it, layer by layer, with what the layer reads in the dense network. Forms
    with a rank are measured at their share of the units (or at the rank asked for, which more units share than will).

    Args:
        program: The dense program.
        given: The offers.
        loader: Batches; only the inputs are used.
        samples: How many samples are read at most.
        ridge: As in `fit_implants`.
        seed: Of the positions that are drawn.
        progress: Told `progress(done, total)` after every layer.

    Returns:
        The offers with their losses, from 0 (the stand-in computes the same) to 1 (as bad as zeros).
    """
    batches = read_batches(loader, samples, program, device_of(program.module()))
    sites = offer_sites(program, given)
    generator = torch.Generator().manual_seed(seed)
    missed: dict[tuple[str, int], np.ndarray] = {}
    energy: dict[str, np.ndarray] = {}
    with eval_mode(program.module()), torch.no_grad():
        run = Lockstep(program, batches, {})
        for done, site in enumerate(sites, start=1):
            inputs, outputs = run.inputs_of(site.node.name), run.outputs_of(site.node.name)
            for name, rows in site.rows.items():
                for place, offer in enumerate(given.groups[name]):
                    lost, whole = _energies(program, site, rows, offer, given, inputs, outputs, ridge, generator)
                    missed[name, place] = missed.get((name, place), np.zeros_like(lost)) + lost
                energy[name] = energy.get(name, np.zeros_like(whole)) + whole
            if progress:
                progress(done, len(sites))
    shares = {}
    for (name, place), lost in missed.items():
        whole = energy[name]
        # A unit that computes nothing loses nothing either way.
        shares[name, place] = np.divide(lost, whole, out=np.zeros_like(lost), where=whole > 0).clip(0.0, 1.0)
    return given.with_losses(shares, {"samples": sum(batch.size for batch in batches), "seed": seed})


def _energies(
    program: Program,
    site: OfferSite,
    rows: np.ndarray,
    offer: Offer,
    given: Offers,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    ridge: float,
    generator: torch.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Energy that the stand-ins of all units of a group miss in a layer, and what there is: float64 [units] each."""
    layer = program.graph_module.get_submodule(site.path)
    assert isinstance(layer, _ConvNd | nn.Linear)
    index = torch.from_numpy(rows.reshape(-1)).to(layer.weight.device)
    bias = layer.bias.detach()[index].clone() if layer.bias is not None else None
    parts = factors(layer.weight.detach()[index], given.form, offer.rank_of(len(rows)))
    made = layers(layer, parts, given.form, bias)
    axis = outputs[0].ndim - (len(layer.kernel_size) + 1 if isinstance(layer, _ConvNd) else 1)
    chain = chain_of(program, site.node, axis)
    targets = [y.index_select(axis, index) for y in outputs]
    if given.init == "least-squares":
        first = inputs if given.form == "low-rank" else [_run(made[:-1], x) for x in inputs]
        biased = bias is not None or norm_behind(program, site.node) is not None
        offset = fit_layers(made, given.form, first, targets, biased=biased, ridge=ridge, generator=generator)
        if offset is not None:
            made[-1].register_parameter("bias", nn.Parameter(offset))
    missed, energy = (torch.zeros(len(index), dtype=torch.float64) for _ in range(2))
    for x, y in zip(inputs, outputs, strict=True):
        wanted = _through(program, chain, y.clone()).index_select(axis, index)
        found = _through(program, chain, y.index_copy(axis, index, _run(made, x))).index_select(axis, index)
        others = [a for a in range(wanted.ndim) if a != axis]
        missed += (found - wanted).double().square().sum(others).cpu()
        energy += wanted.double().square().sum(others).cpu()
    return missed.reshape(rows.shape).sum(1).numpy(), energy.reshape(rows.shape).sum(1).numpy()


def _run(made: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in made:
        x = layer(x)
    return x


def _through(program: Program, chain: Sequence[fx.Node], value: Tensor) -> Tensor:
    """A layer's output behind what follows it."""
    for node in chain[1:]:
        if node.op == "call_module":
            value = program.graph_module.get_submodule(str(node.target))(value)
        else:
            assert callable(node.target)
            before = node.all_input_nodes[0]
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n, b=before, v=value: v if n is b else n)
            value = node.target(*args, **kwargs)
    return value
