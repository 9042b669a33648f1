"""Bytes of the file that no weight accounts for: what a block's operations take, and what an implant adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from ...passes.blocks import Block, drop_blocks
from ...passes.implant import Implanted
from ...passes.implant_form import Implant
from ...passes.program import Program
from ..cost.file_size import size_column
from ..cost.whole import integer_network
from ..implants.apply import rewrite
from ..implants.offers import Offers, offer_sites
from .limits import Costs


def block_bytes(costs: Costs, blocks: Sequence[Block]) -> Mapping[str, float]:
    """Bytes beside its constants by which the file is smaller without a block, by its name.

    One block of each kind (the same operations and layers) is dropped for it.

    Args:
        costs: Costs of the program.
        blocks: The blocks.
    """
    kinds: dict[tuple[str, ...], float] = {}
    found = {}
    for block in blocks:
        kind = _kind(costs.program, block)
        if kind not in kinds:
            without = integer_network(drop_blocks(costs.program, [block.name]), costs.target)
            constants = size_column(costs.program, costs.sites, costs.network, block).cost(costs.full[None])[0]
            kinds[kind] = costs.network.size - without.size - float(constants)
        found[block.name] = kinds[kind]
    return found


def stand_in_bytes(costs: Costs, given: Offers) -> float:
    """Bytes that one stand-in adds to the file beside weights: the mean over a network with one in every place.

    Args:
        costs: Costs of the program.
        given: The implants that there may be.
    """
    program, implants = costs.program, {}
    for group in program.groups:
        if group.name in given.groups:
            units = tuple(range(max(1, group.width // 2)))
            rank = given.groups[group.name][-1].rank_of(len(units))
            implants[group.name] = Implant(units, given.form, rank)
    if not implants:
        return 0.0
    made = rewrite(program, {}, implants)
    weights = 0.0
    for site in offer_sites(program, given):
        size = 1.0 if site.path in costs.network.integer else 4.0
        after = sum(_weights(made.program, path) for path in _parts(made, site.path))
        weights += size * (_weights(program, site.path) - after)
    whole = integer_network(made.program, costs.target).size
    return max(0.0, (whole - costs.network.size + weights) / len(made.stand_ins))


def _parts(made: Implanted, path: str) -> list[str]:
    """Paths of the layers that compute what one layer did."""
    found = [path] if path in dict(made.program.graph_module.named_modules()) else []
    return found + [own for s in made.stand_ins if s.rows.layer == path for own in s.layers]


def _weights(program: Program, path: str) -> int:
    return program.graph_module.get_parameter(f"{path}.weight").numel()


def _kind(program: Program, block: Block) -> tuple[str, ...]:
    """The operations of a block, in order."""
    nodes = {node.name: node for node in program.graph.nodes}
    return tuple(_operation(program, nodes[name]) for name in block.branch)


def _operation(program: Program, node: fx.Node) -> str:
    if node.op != "call_module":
        return str(node.target)
    return type(program.graph_module.get_submodule(str(node.target))).__name__
