"""The block-diagonal Fisher: weights of different blocks are taken not to interact."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .backsolve import backsolve
from .data_matrix import stored
from .line_search import Point
from .problem import Problem
from .variables import Variables


def block_spans(variables: Variables, size: int) -> Iterator[slice]:
    """Blocks of `size` to 2 `size` - 1 neighbouring weights, about equal inside a tensor; a smaller tensor is one."""
    for item in variables:
        count = max(1, item.size // size)
        edges = [item.start + item.size * i // count for i in range(count + 1)]
        yield from (slice(low, high) for low, high in pairwise(edges))


def backsolve_blocks(problem: Problem, support: Tensor, variables: Variables, size: int) -> Point:
    """`backsolve` inside each block, as if the others were not pruned.

    Less memory and time, as a block's system is at most 2 `size` wide; worse weights wherever blocks interact.

    Args:
        problem: Q of all weights; its matrix must be stored.
        support: bool [p].
        variables: Says where tensors end.
        size: Smallest block.

    Returns:
        The weights, with their value in Q of all weights. That may be above the value of the start; in the
        block-diagonal objective it is not.
    """
    matrix = stored(problem.matrix, "a block-diagonal Fisher")
    w = torch.zeros_like(problem.center)
    for span in block_spans(variables, size):
        part = Problem(matrix.restrict(span), problem.center[span], problem.ridge, problem.offset)
        w[span] = backsolve(part, support[span]).w
    return Point.at(problem, w, support)
