"""Turns what a recipe names into objects: the model, its data, the loss and the metric."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from .checkpoint import load_checkpoint
from .compress.data import Loader, LossFn, MetricFn, empty_loader, split_batch
from .compress.heal.evaluate import cross_entropy, top1
from .compress.heal.randomness import seeded
from .errors import UnsupportedError, UserError
from .factory import DataSpec, call_factory, load_factory
from .loaders import CheckedLoader
from .passes.capture import capture
from .passes.program import Program
from .recipe import ModelSpec

LOSSES: Mapping[str, LossFn] = {"cross_entropy": cross_entropy}
METRICS: Mapping[str, MetricFn] = {"top1": top1}


@dataclass(frozen=True)
class Data:
    """The loaders that a data factory returns; see `compress.data` for what they yield.

    Attributes:
        train: Shuffled and augmented; heals the network.
        calibration: Training samples without augmentation, in a fixed order; for ranking, ranges and example inputs.
        validation: Held out from the *training* data; chooses the best epoch. None: the last epoch is taken.
        test: Never looked at to decide anything; only reported and gated on.
    """

    train: Loader
    calibration: Loader
    validation: Loader | None
    test: Loader


def load_model(spec: ModelSpec) -> nn.Module:
    """Builds the model and loads its checkpoint.

    The factory finds the global random numbers in the same state every time it is called.

    Raises:
        UserError: The factory fails or returns something else, or the checkpoint does not fit.
    """
    with seeded(0, 0):
        model = call_factory(spec.factory, spec.args, where="model.factory")
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model factory returned {type(model).__name__}, not an nn.Module",
            where=f"model.factory {spec.factory}",
        )
    if spec.checkpoint:
        load_checkpoint(model, spec.checkpoint, allow_pickle=spec.allow_pickle)
    return model


def load_data(spec: DataSpec) -> Data:
    """Calls the data factory.

    A run is continued, and its artifact is checked, in other processes: a random split must be the same in all of
    them, or test data would be trained on. So the factory finds the global random numbers in the same state every time.

    Raises:
        UserError: It fails, or a loader is missing or empty.
    """
    with seeded(0, 0):
        made = call_factory(spec.factory, spec.args, where="data.factory")
    get = made.get if isinstance(made, Mapping) else lambda name: getattr(made, name, None)
    found: dict[str, Any] = {name: get(name) for name in ("train", "calibration", "validation", "test")}
    for name in ("train", "test"):
        if found[name] is None:
            raise UserError(
                f"the data factory gives no {name!r} loader",
                where=f"data.factory {spec.factory}",
                hint="return a mapping with train, test and, better, validation and calibration",
            )
    if found["calibration"] is None:
        found["calibration"] = found["train"]
    given = {name: CheckedLoader(loader, name) for name, loader in found.items() if loader is not None}
    return Data(given["train"], given["calibration"], given.get("validation"), given["test"])


def resolve(name: str, known: Mapping[str, Any], *, key: str) -> Any:
    """The loss or metric of this name, or the function that `package.module:function` names."""
    return known[name] if name in known else load_factory(name, where=key, known=tuple(known))


def capture_on(model: nn.Module, loader: Loader, dynamic: Mapping[str, Sequence[int]] | None = None) -> Program:
    """Captures the model on the first samples of a loader, or on its whole first batch if it runs on no other size.

    Args:
        model: The model.
        loader: Yields batches.
        dynamic: As in `capture`.

    Raises:
        UserError: The loader is empty, the model does not run on its batches, or has no such axis.
        UnsupportedError: The model cannot be captured.
    """
    args, kwargs = example_inputs(loader)
    try:
        return capture(model, args, example_kwargs=kwargs, dynamic=dynamic)
    except UnsupportedError:
        raise
    except UserError:
        args, kwargs = example_inputs(loader, samples=None)
        return capture(model, args, example_kwargs=kwargs, dynamic=dynamic)


def example_inputs(loader: Loader, samples: int | None = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first samples of the first batch (all if None), as arguments of the model.

    Raises:
        UserError: The loader is empty.
    """
    first = list(itertools.islice(loader, 1))
    if not first:
        raise empty_loader(loader)
    args, kwargs, _ = split_batch(first[0])
    args, kwargs = _pytree.tree_map_only(torch.Tensor, lambda t: t[:samples].clone(), (args, dict(kwargs)))
    return args, kwargs
