"""Forms of implants: what stands in for some filters of a layer, and how it follows from the filters alone.

With W [n, in, k…] the filters that are replaced, and r the rank:

| form | computes | weights |
|---|---|---|
| `pointwise` | a 1×1 convolution of the same stride (Yu et al. 2022, arXiv:2101.08940, "neural implant") | n·in |
| `low-rank` | k×k to r channels, then 1×1 to n (truncated SVD of the filters as a matrix [n, in·k·k]) | r·in·k² + n·r |
| `separable` | k×1 to r channels, then 1×k to n (SVD of [in·k, n·k]; Jaderberg et al. 2014) | r·in·k + n·r·k |
| `tucker` | 1×1 to r, k×k from r to r, 1×1 to n (truncated HOSVD; Kim et al. 2016) | r·in + r²·k² + n·r |
| `center` | the layer itself, with the weights beside the centre of the kernel set to zero | as before |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..errors import Allowed, Refused

FORMS = ("pointwise", "low-rank", "separable", "tucker", "center")
"""What can stand in for filters."""

RANKED = ("low-rank", "separable", "tucker")
"""Forms that have a rank."""

INITS = ("center", "zeros")
"""Weights without data: nearest to the filters (their centre, or truncated decompositions), or computing nothing."""

_Layer = TypeVar("_Layer", bound=nn.Module)

_CONVOLUTIONS: Mapping[int, type[_ConvNd]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Implant:
    """Units of one group that are computed by a stand-in.

    Attributes:
        units: The units.
        form: One of `FORMS`.
        rank: Of the forms in `RANKED`; None for the others.
    """

    units: tuple[int, ...]
    form: str = "pointwise"
    rank: int | None = None


Implants = Mapping[str, Implant]
"""Implants by group name."""


def replaceable(layer: nn.Module, form: str) -> Allowed | Refused:
    """Whether filters of a layer can be replaced by this form."""
    if isinstance(layer, nn.Linear):
        if form == "low-rank":
            return Allowed()
        return Refused("a linear layer has no kernel to make smaller", hint="take the form low-rank")
    if not isinstance(layer, _ConvNd) or isinstance(layer, _ConvTransposeNd):
        return Refused(f"the filters of a {type(layer).__name__} cannot be replaced one by one")
    if layer.groups > 1:
        return Refused("a grouped convolution computes its outputs from different inputs")
    if form == "low-rank":
        return Allowed()
    if prod(layer.kernel_size) == 1:
        return Refused("its kernel is 1×1 already", hint="take the form low-rank")
    if form == "tucker":
        return Allowed()
    if form == "separable":
        if len(layer.kernel_size) != 2 or 1 in layer.kernel_size:
            return Refused("its kernel does not have two axes", hint="take the form low-rank")
        if layer.padding_mode != "zeros":
            return Refused(f"its padding mode is {layer.padding_mode!r}", hint="take the form low-rank")
        return Allowed() if _paddings(layer) is not None else Refused("an even kernel has no symmetric padding")
    if any(size % 2 == 0 for size in layer.kernel_size):
        return Refused("an even kernel has no centre", hint="take the form low-rank")
    if form == "center":
        return Allowed()
    padding = center_padding(layer)
    if padding is None:
        return Refused("its padding is smaller than half of its kernel", hint="take the form low-rank")
    if any(padding) and layer.padding_mode != "zeros":
        return Refused(f"its padding mode is {layer.padding_mode!r}", hint="take the form low-rank")
    return Allowed()


def center_padding(layer: _ConvNd) -> tuple[int, ...] | None:
    """Padding with which a 1×1 convolution of the same stride reads where the centre of the kernel does, if any."""
    paddings = _paddings(layer)
    if paddings is None:
        return None
    reach = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    rest = tuple(p - r for p, r in zip(paddings, reach, strict=True))
    return rest if min(rest) >= 0 else None


def _paddings(layer: _ConvNd) -> tuple[int, ...] | None:
    """Padding of each axis, the same at both ends; None if it is not."""
    if layer.padding == "valid":
        return (0,) * len(layer.kernel_size)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return None if any(t % 2 for t in total) else tuple(t // 2 for t in total)
    return tuple(int(p) for p in layer.padding)


def weights_of(shape: Sequence[int], form: str, rank: int | None = None) -> int:
    """Number of weights of a stand-in.

    Args:
        shape: [n, in, k…] of the filters that it replaces.
        form: One of `FORMS`.
        rank: Of a ranked form.
    """
    n, inputs, *kernel = shape
    area, r = prod(kernel), rank or 0
    if form == "pointwise":
        return n * inputs
    if form == "low-rank":
        return min(r, n, inputs * area) * (inputs * area + n)
    if form == "separable":
        return min(r, inputs * kernel[0], n * kernel[1]) * (inputs * kernel[0] + n * kernel[1])
    if form == "tucker":
        first, last = min(r, inputs), min(r, n)
        return inputs * first + first * last * area + n * last
    return prod(shape)


def default_rank(shape: Sequence[int], form: str) -> int | None:
    """The largest rank that costs no more than a pointwise implant, or than half of the filters where k is 1."""
    if form not in RANKED:
        return None
    n, inputs, *kernel = shape
    limit = n * inputs if prod(kernel) > 1 else n * inputs // 2
    rank = 1
    while rank < n and weights_of(shape, form, rank + 1) <= limit:
        rank += 1
    return rank


def factors(weight: Tensor, form: str, rank: int | None = None, init: str = "center") -> tuple[Tensor, ...]:
    """Weights of the layers of a stand-in, first to last.

    Args:
        weight: [n, in, k…]: the filters that are replaced.
        form: One of `FORMS`.
        rank: Of a ranked form; at most what the shape allows is taken.
        init: `center`, or `zeros` for the last layer.
    """
    found = tuple(part.to(weight.dtype) for part in _FACTORS[form](weight.detach().double(), rank or 1))
    return (*found[:-1], torch.zeros_like(found[-1])) if init == "zeros" else found


def filters(parts: Sequence[Tensor], form: str, kernel: Sequence[int]) -> Tensor:
    """The filters [n, in, k…] that a stand-in with these weights amounts to: the inverse of `factors`.

    Args:
        parts: Weights of its layers, first to last.
        form: One of `FORMS`.
        kernel: Kernel of the layer whose filters it replaces; empty for a linear layer.
    """
    if form == "pointwise":
        (point,) = parts
        whole = point.new_zeros(*point.shape[:2], *kernel)
        whole[_center(kernel)] = point.flatten(1)
        return whole
    if form == "low-rank":
        first, last = parts
        return (last.flatten(1) @ first.flatten(1)).reshape(len(last), *first.shape[1:])
    if form == "separable":
        first, last = parts
        return torch.einsum("riy,nrx->niyx", first[..., 0], last[:, :, 0])
    if form == "tucker":
        first, core, last = parts
        out = torch.einsum("na,ab...->nb...", last.flatten(1), core)
        return torch.einsum("nb...,bi->ni...", out, first.flatten(1))
    return parts[0]


def layers(layer: _ConvNd | nn.Linear, parts: Sequence[Tensor], form: str, bias: Tensor | None) -> list[nn.Module]:
    """The layers of a stand-in, first to last; the last one has the bias.

    Args:
        layer: The layer whose filters are replaced: gives stride, padding and dilation.
        parts: Their weights, from `factors`.
        form: One of `FORMS`, but not `center`.
        bias: [n] or None.
    """
    if isinstance(layer, nn.Linear):
        return [_linear(part, bias if i else None) for i, part in enumerate(parts)]
    rank = len(layer.kernel_size)
    whole: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    whole["padding_mode"] = layer.padding_mode
    if form == "pointwise":
        padding = center_padding(layer)
        assert padding is not None
        options: list[dict[str, Any]] = [{"stride": layer.stride, "padding": padding}]
    elif form == "low-rank":
        options = [whole, {}]
    elif form == "tucker":
        options = [{}, whole, {}]
    else:
        paddings = _paddings(layer)
        assert paddings is not None
        sides = zip(layer.stride, paddings, layer.dilation, strict=True)
        (sy, py, dy), (sx, px, dx) = sides
        options = [
            {"stride": (sy, 1), "padding": (py, 0), "dilation": (dy, 1)},
            {"stride": (1, sx), "padding": (0, px), "dilation": (1, dx)},
        ]
    last = len(parts) - 1
    made = zip(parts, options, strict=True)
    return [_convolution(rank, part, bias if i == last else None, given) for i, (part, given) in enumerate(made)]


def _center(kernel: Sequence[int]) -> tuple:
    """Index of the centre of a kernel behind the axes of outputs and inputs."""
    return (slice(None), slice(None), *(size // 2 for size in kernel))


def _point(weight: Tensor, _: int) -> tuple[Tensor, ...]:
    kernel = weight.shape[2:]
    return (weight[_center(kernel)].reshape(*weight.shape[:2], *[1] * len(kernel)),)


def _only_center(weight: Tensor, _: int) -> tuple[Tensor, ...]:
    whole = torch.zeros_like(weight)
    whole[_center(weight.shape[2:])] = weight[_center(weight.shape[2:])]
    return (whole,)


def _low_rank(weight: Tensor, rank: int) -> tuple[Tensor, ...]:
    left, right = _svd(weight.flatten(1), rank)
    ones = [1] * (weight.ndim - 2)
    return right.reshape(-1, *weight.shape[1:]), left.reshape(*left.shape, *ones)


def _separable(weight: Tensor, rank: int) -> tuple[Tensor, ...]:
    n, inputs, height, width = weight.shape
    left, right = _svd(weight.permute(1, 2, 0, 3).reshape(inputs * height, n * width), rank)
    return left.T.reshape(-1, inputs, height, 1), right.reshape(-1, n, width).transpose(0, 1).unsqueeze(2)


def _tucker(weight: Tensor, rank: int) -> tuple[Tensor, ...]:
    ones = [1] * (weight.ndim - 2)
    outer = torch.linalg.svd(weight.flatten(1), full_matrices=False)[0][:, :rank]
    inner = torch.linalg.svd(weight.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :rank]
    core = torch.einsum("ni...,na,ib->ab...", weight, outer, inner)
    return inner.T.reshape(*inner.T.shape, *ones), core, outer.reshape(*outer.shape, *ones)


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest matrix of this rank as a product, its singular values shared between both factors."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vh[:rank]


_FACTORS = {
    "pointwise": _point,
    "low-rank": _low_rank,
    "separable": _separable,
    "tucker": _tucker,
    "center": _only_center,
}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _filled(made, weight, bias)


def _convolution(rank: int, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> _ConvNd:
    with torch.device("meta"):
        made = _CONVOLUTIONS[rank](
            weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), bias=bias is not None, **options
        )
    return _filled(made, weight, bias)


def _filled(layer: _Layer, weight: Tensor, bias: Tensor | None) -> _Layer:
    layer.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias)
    return layer
