"""Size of the model file as a function of the widths, read off the file of the whole network."""

from __future__ import annotations

from math import prod

from onnx import TensorProto, numpy_helper
from torch import nn

from ...passes.blocks import Block
from ...passes.program import Program
from .axes import Axis, AxisReader
from .sites import Site
from .terms import Column, Term, product_term
from .whole import Network

PARTS = ("weight", "weight.T", "weight_scale", "weight_zero_point", "bias", "bias_scale")
"""What the lowering calls the constants of a layer, behind the layer's path."""


def size_column(program: Program, sites: tuple[Site, ...], network: Network, only: Block | None = None) -> Column:
    """Bytes of the file, or of the constants of one block in it.

    Weights shrink on both axes, what there is once a channel on one; all else is constant.

    Args:
        program: The program at full width.
        sites: Its layers.
        network: Its file at full width.
        only: The block.
    """
    reader = AxisReader(program)
    modules: dict[str, nn.Module] = {path: module for path, module in program.graph_module.named_modules() if path}
    outputs = {site.path: site.outputs for site in sites}
    terms, counted = [], 0
    for array in network.model.graph.initializer:
        size = numpy_helper.to_array(array).nbytes
        term = _term(reader, modules, outputs, array, size)
        if term is not None and (only is None or _path(modules, array) in only.layers):
            terms.append(term)
            counted += size
    return Column("size", tuple(terms), network.size - counted if only is None else 0.0)


def _path(modules: dict[str, nn.Module], array: TensorProto) -> str:
    """Path of the layer that a constant of the file belongs to; "" if it belongs to none."""
    named = (array.name.removesuffix(f".{part}") for part in PARTS)
    return next((path for path in named if path != array.name and path in modules), "")


def _term(
    reader: AxisReader, modules: dict[str, nn.Module], outputs: dict[str, Axis], array: TensorProto, size: int
) -> Term | None:
    """The size of a constant of the file; None if it belongs to no layer."""
    dims = list(array.dims)
    path = _path(modules, array)
    module = modules.get(path)
    weight = getattr(module, "weight", None)
    if weight is None or not dims:
        return None
    axes = reader.tensor(weight)
    if path in outputs:
        if len(dims) > 1:
            return product_term(axes, size / weight.numel()) if prod(dims) == weight.numel() else None
        return product_term([outputs[path]], size / dims[0])
    # A batch norm that is not folded becomes a depthwise convolution.
    one_a_channel = isinstance(module, nn.modules.batchnorm._BatchNorm) and dims[0] == len(weight)
    return product_term(axes, size / dims[0]) if one_a_channel else None
