"""How batches are read: the one convention for every step that looks at data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

Loader = Iterable[Any]
"""Yields batches; may be iterated more than once."""

LossFn = Callable[[Any, Any], Tensor]
"""`loss(output, target)` -> scalar mean over the batch."""

MetricFn = Callable[[Any, Any], Tensor]
"""`metric(output, target)` -> one score per sample, shape [batch]; higher is better."""


def split_batch(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any], Any]:
    """Splits a batch into positional inputs, keyword inputs and target.

    A batch is a pair `(inputs, target)`: inputs are a tensor (one positional argument), a tuple or list (several) or a
    dict (keyword arguments).

    Returns:
        `(args, kwargs, target)`.

    Raises:
        UserError: The batch is not a pair.
    """
    from ..errors import UserError

    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise UserError(
            f"a batch must be a pair (inputs, target), not {type(batch).__name__}",
            where="data factory",
            why="the loader yields something else",
            hint="yield (inputs, target); inputs is a tensor, a tuple of tensors, or a dict of keyword arguments",
        )
    inputs, target = batch
    if isinstance(inputs, Mapping):
        return (), inputs, target
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}, target
    return (inputs,), {}, target
