"""The layers that a layer becomes when a stand-in computes some of its filters, as the latency table knows them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from ...export.layer_model import LayerShape

Layer = tuple[LayerShape, np.ndarray, np.ndarray]
"""A family of shapes, whose channels are zero; channels in and out, int64 [cases, 2]; bool [cases]: there or not."""


def split_layers(
    family: LayerShape, form: str, inputs: np.ndarray, outputs: np.ndarray, rows: np.ndarray, rank: np.ndarray
) -> list[Layer]:
    """What runs where a stand-in computes the last filters of a layer: the rest of it, the stand-in, a concatenation.

    Args:
        family: Shape of the layer.
        form: Form of the stand-in (see `passes.implant_form`); not `center`, which leaves the layer as it is.
        inputs: Channels in, int64 [cases], like all that follows.
        outputs: Channels out, replaced ones among them.
        rows: Filters that are replaced; 0 for none.
        rank: Rank of the stand-in, 0 if the form has none.
    """
    own, replaced = outputs > rows, rows > 0
    shapes = [(family, inputs, outputs - rows, own), (_concatenation(family), outputs - rows, rows, own & replaced)]
    shapes += [(*shape, replaced) for shape in _stand_in(family, form, inputs, rows, rank)]
    return [(shape, np.stack([a, b], axis=1), there) for shape, a, b, there in shapes]


def _stand_in(
    family: LayerShape, form: str, inputs: np.ndarray, rows: np.ndarray, rank: np.ndarray
) -> list[tuple[LayerShape, np.ndarray, np.ndarray]]:
    """The layers of a stand-in, as `passes.implant_form.layers` makes them."""
    area, axes = prod(family.kernel), len(family.kernel)
    if form == "pointwise":
        reach = [d * (k - 1) // 2 for d, k in zip(family.dilation, family.kernel, strict=True)]
        padding = tuple(p - r for p, r in zip(family.padding, reach, strict=True))
        return [(replace(_pointwise(family, family.size), stride=family.stride, padding=padding), inputs, rows)]
    if form == "low-rank":
        r = np.minimum(np.minimum(rank, rows), inputs * area)
        last = _pointwise(family, _size_behind(family)) if axes else family
        return [(family, inputs, r), (last, r, rows)]
    if form == "tucker":
        first, last = np.minimum(rank, inputs), np.minimum(rank, rows)
        before, behind = (_pointwise(family, size) for size in (family.size, _size_behind(family)))
        return [(before, inputs, first), (family, first, last), (behind, last, rows)]
    r = np.minimum(np.minimum(rank, inputs * family.kernel[0]), rows * family.kernel[1])
    upright, lying = (_along(family, axis) for axis in (0, 1))
    return [(upright, inputs, r), (replace(lying, size=_size_behind(upright)), r, rows)]


def _along(family: LayerShape, axis: int) -> LayerShape:
    """The convolution with a kernel along one axis alone."""

    def only(values: tuple[int, ...], other: int) -> tuple[int, ...]:
        return tuple(value if i == axis else other for i, value in enumerate(values))

    return replace(
        family,
        kernel=only(family.kernel, 1),
        stride=only(family.stride, 1),
        padding=only(family.padding, 0),
        dilation=only(family.dilation, 1),
    )


def _pointwise(family: LayerShape, size: tuple[int, ...]) -> LayerShape:
    ones, none = (1,) * len(family.kernel), (0,) * len(family.kernel)
    return replace(family, size=size, kernel=ones, stride=ones, padding=none, dilation=ones)


def _concatenation(family: LayerShape) -> LayerShape:
    size = _size_behind(family) if family.kernel else family.size
    return LayerShape("concat", family.integer, 0, 0, size, batch=family.batch, last=not family.kernel)


def _size_behind(family: LayerShape) -> tuple[int, ...]:
    """Spatial size of what a convolution writes."""
    sides = zip(family.size, family.kernel, family.stride, family.padding, family.dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
