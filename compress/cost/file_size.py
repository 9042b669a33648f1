"""Size of the model file as a function of the widths, read off the file of the whole network."""

from __future__ import annotations

from math import prod

from onnx import TensorProto, numpy_helper

from ...passes.program import Program
from .axes import AxisReader, scaled
from .sites import Site
from .terms import Column, product_term
from .whole import Network

WEIGHTS = ("weight", "weight.T")
"""What the lowering calls the weight of a layer, behind the layer's path."""


def size_column(program: Program, sites: tuple[Site, ...], network: Network) -> Column:
    """Bytes of the file. Weights shrink on both axes, what there is once a channel on one; all else is constant.

    Args:
        program: The program at full width.
        sites: Its layers.
        network: Its file at full width.
    """
    reader = AxisReader(program)
    layers = {site.path: site for site in sites}
    terms, counted = [], 0
    for array in network.model.graph.initializer:
        path, _, part = _layer_of(array.name, layers)
        if path not in layers:
            continue
        size, dims = _bytes(array), tuple(array.dims)
        if part in WEIGHTS:
            weight = program.graph_module.get_submodule(path).weight
            axes = reader.tensor(weight)  # type: ignore[arg-type]
            if prod(dims) != weight.numel():
                continue
            factor = size / weight.numel()
            terms.append(product_term(axes, factor))
        elif len(dims) == 1:
            outputs = layers[path].outputs
            terms.append(product_term([scaled(outputs, 1)], size / dims[0]))
        else:
            continue
        counted += size
    return Column("size", tuple(terms), network.size - counted)


def _layer_of(name: str, layers: dict[str, Site]) -> tuple[str, str, str]:
    """The layer that an initialiser belongs to, and which part of it."""
    for part in (*reversed(WEIGHTS), "weight_scale", "weight_zero_point", "bias", "bias_scale"):
        path = name.removesuffix(f".{part}")
        if path != name and path in layers:
            return path, ".", part
    return "", "", ""


def _bytes(array: TensorProto) -> int:
    return numpy_helper.to_array(array).nbytes
