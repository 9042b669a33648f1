"""How batches are read: the one convention for every step that looks at data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import UserError

Loader = Iterable[Any]
"""Yields batches; may be iterated more than once."""

LossFn = Callable[[Any, Any], Tensor]
"""`loss(output, target)` -> scalar mean over the batch."""

MetricFn = Callable[[Any, Any], Tensor]
"""`metric(output, target)` -> one score per sample, shape [batch]; higher is better."""

_IGNORED = -100
"""The label that `torch.nn.functional.cross_entropy` leaves out."""


def split_batch(batch: Any) -> tuple[tuple[Any, ...], Mapping[str, Any], Any]:
    """Splits a batch into positional inputs, keyword inputs and target.

    A batch is a pair `(inputs, target)`: inputs are a tensor (one positional argument), a tuple or list (several) or a
    dict (keyword arguments).

    Returns:
        `(args, kwargs, target)`.

    Raises:
        UserError: The batch is not a pair.
    """
    if not (isinstance(batch, tuple | list) and len(batch) == 2):
        many = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        raise UserError(
            f"a batch must be a pair (inputs, target), not {type(batch).__name__}{many}",
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


def empty_loader(loader: Any, name: str = "") -> UserError:
    """What is said of a loader that yields nothing.

    Args:
        loader: It; its own name, if it has one, goes before `name`.
        name: What it is for.
    """
    name = getattr(loader, "loader_name", name)
    return UserError(
        f"the {name!r} loader is empty" if name else "the loader is empty",
        where="data.factory",
        why="it yields no batch",
        hint="check the data path and the split sizes",
    )


def run_batch(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The network's output for the inputs of a batch.

    Raises:
        UserError: It does not run on them.
    """
    try:
        return call(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise
        raise UserError(
            "the network does not run on a batch of the loader",
            where="data factory",
            why=first_line(error),
            hint=f"every loader must yield inputs like those of capture; these are {shapes_of((*args, dict(kwargs)))}",
        ) from error


def scalar_loss(loss: LossFn, output: Any, target: Any) -> Tensor:
    """The loss of a batch as a scalar tensor, shape [].

    Raises:
        UserError: It fails on the network's output, labels are out of range, or it is no scalar.
    """
    try:
        value = loss(output, target)
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _loss_error(output, target, error) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise UserError(
            "the loss must be a scalar",
            where="loss",
            why=f"it is {list(value.shape) if isinstance(value, Tensor) else type(value).__name__}",
            hint="return the mean over the batch",
        )
    return value.reshape(())


def check_labels(target: Any, classes: int) -> None:
    """Checks that integer targets are classes of the network; -100, which cross entropy ignores, passes.

    Args:
        target: Class indices [batch, …]; anything else passes.
        classes: Number of the network's outputs.

    Raises:
        UserError: Names the first label that is none, its place in the batch, and the range of the batch.
    """
    if not isinstance(target, Tensor) or target.is_floating_point() or not target.numel():
        return
    wrong = ((target < 0) & (target != _IGNORED)) | (target >= classes)
    if not bool(wrong.any()):
        return
    place = wrong.nonzero()[0].tolist()
    raise UserError(
        "labels are out of range",
        where="data factory, target",
        why=f"target[{', '.join(map(str, place))}] of the batch is {int(target[tuple(place)])}; labels go from "
        f"{int(target.min())} to {int(target.max())}, the network has {classes} outputs (0 to {classes - 1})",
        hint="count labels from 0, and check that model and data have the same classes",
    )


def _loss_error(output: Any, target: Any, error: Exception) -> UserError:
    if isinstance(output, Tensor) and output.ndim > 1:
        try:
            check_labels(target, output.shape[1])
        except UserError as wrong:
            return wrong
    return UserError(
        "the loss fails on the network's output",
        where="loss",
        why=first_line(error),
        hint=f"it is called as loss(output, target) with output {shapes_of(output)} and target {shapes_of(target)}",
    )


def shapes_of(value: Any) -> str:
    """Shapes of the tensors in nested containers, for messages."""
    return str(pytree.tree_map(lambda x: list(x.shape) if isinstance(x, Tensor) else type(x).__name__, value))


def first_line(error: Exception) -> str:
    """Type and first line of an exception, for messages."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: CUDA has a class for it, the CPU's allocator a message."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
