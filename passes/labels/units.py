"""From recorded label flow to units: connected components, axes that can shrink, and classes of equal units."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .values import Labels

Edges = list[tuple[np.ndarray, np.ndarray]]


def components(count: int, edges: Edges) -> np.ndarray:
    """The smallest id of the component of every id, int64 [count]; id 0 is alone."""
    if not edges:
        return np.arange(count)
    a, b = (np.concatenate(side) for side in zip(*edges, strict=True))
    graph = coo_matrix((np.ones(len(a), dtype=np.int8), (a, b)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    return first[labels]


def settle_splits(count: int, edges: Edges, splits: Sequence[tuple[Labels, int]]) -> np.ndarray:
    """Components once every reshape that spread channels over several axes has one axis that can shrink.

    Where the other operations do not tie the channels to slices of one axis, those at the same position of the
    preferred axis become one unit. All undecided reshapes are settled at once, then looked at again.

    Returns:
        int64 [count]: the component of every id.
    """
    edges = list(edges)
    component = components(count, edges)
    open_splits = [(labels.ids.numpy(), axis) for labels, axis in splits]
    while True:
        undecided = [(ids, axis) for ids, axis in open_splits if shrinking_axis(component[ids]) is None]
        if not undecided:
            return component
        for ids, axis in undecided:
            rows = np.moveaxis(component[ids], axis, -1).reshape(-1, ids.shape[axis])
            first = np.broadcast_to(rows.max(0), rows.shape)
            edges.append((first[rows != 0], rows[rows != 0]))
        component = components(count, edges)
        settled = {id(ids) for ids, _ in undecided}
        open_splits = [item for item in open_splits if id(item[0]) not in settled]


def shrinking_axis(units: np.ndarray) -> int | None:
    """The axis along which alone the units differ (0 if they are all the same); None if they differ along several."""
    axes = [axis for axis in range(units.ndim) if (units != units.take([0], axis)).any()]
    return None if len(axes) > 1 else (axes or [0])[0]


def first_appearance(values: np.ndarray) -> np.ndarray:
    """The distinct values in the order in which they first appear."""
    distinct, index = np.unique(values, return_index=True)
    return distinct[np.argsort(index)]


def classes(count: int, axes: Iterable[np.ndarray]) -> np.ndarray:
    """Classes of units that lie on exactly the same axes with the same multiplicity.

    Partition refinement: each axis splits every class by how many positions of the axis the units have.

    Args:
        count: Number of units.
        axes: For each axis the unit of every position, -1 where there is none.

    Returns:
        int64 [count]: class numbers, in the order of their first units.
    """
    group = np.zeros(count, dtype=np.int64)
    following = 1
    for positions in axes:
        units, times = np.unique(positions[positions >= 0], return_counts=True)
        if not len(units):
            continue
        kinds, kind = np.unique(np.stack([group[units], times]), axis=1, return_inverse=True)
        group[units] = following + kind.reshape(-1)
        following += kinds.shape[1]
    order = first_appearance(group)
    rank = np.empty(following, dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank[group]


def to_edges(edges: Iterable[tuple[Tensor, Tensor]]) -> Edges:
    """Recorded pairs as flat arrays."""
    return [(a.reshape(-1).numpy(), b.reshape(-1).numpy()) for a, b in edges]
