"""What a captured network leaves out in training: `torch.export` records the path of evaluation.

Dropout layers, normalisation and `F.dropout` become layers that know both modes. Anything else that asks
`self.training` is lost: dropout inside attention kernels, stochastic depth, auxiliary heads. Found by running the model
in both modes on fake tensors, which cost nothing, and comparing the functions that each module calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from .quiet import quiet

_KNOWN = (_NormBase, _DropoutNd)
"""Layers that stay layers, and so keep their two modes."""
_LAYERS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "batch_norm"}
)
"""Functions that become layers whatever their training flag is."""
_DROPOUT = {"scaled_dot_product_attention": (4, True), "multi_head_attention_forward": (10, True)}
"""Functions with dropout inside: position of its probability, and whether it is on unless `training` says otherwise."""
_LONGEST = 200
_UNSEEN = frozenset({"__get__", "dim", "size", "is_floating_point", "requires_grad_", "stride", "numel", "has_names"})


@dataclass
class _Calls(TorchFunctionMode):
    """Functions called, by the path of the innermost module that runs.

    Attributes:
        path: Modules that run, outermost first.
        made: How often each function was called in each module.
        dropout: Probabilities of dropout inside attention, by module.
    """

    path: list[str] = field(default_factory=list)
    made: dict[str, Counter[str]] = field(default_factory=dict)
    dropout: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
        here = self.path[-1] if self.path else ""
        if name in _DROPOUT:
            place, default = _DROPOUT[name]
            p = kwargs.get("dropout_p", args[place] if len(args) > place else 0.0)
            if p and kwargs.get("training", default):
                self.dropout[here] = float(p)
        if name not in _UNSEEN:
            self.made.setdefault(here, Counter())[name] += 1
        return func(*args, **kwargs)


def evaluation_only(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """What the model does in training and a program of it does not, in sentences.

    Args:
        model: A model in eval mode; as it was afterwards.
        args: Its positional inputs, with at least two samples (batch norm takes statistics in training).
        kwargs: Its keyword inputs.

    Returns:
        Nothing if the modes do not differ, or if the model does not run on fake tensors.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        evaluation = _run(model, args, kwargs)
        model.train()
        training = _run(model, args, kwargs)
    except Exception as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        why = f"{type(error).__name__}: {first}"[:_LONGEST]
        return (f"what the model does in training only could not be found out: it does not run there ({why})",)
    finally:
        for module, flag in flags:
            module.training = flag
    return tuple(_sentences(model, evaluation, training))


def _run(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Calls:
    calls = _Calls()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    state = dict([*model.named_parameters(), *model.named_buffers()])
    # Fake weights too: training writes statistics.
    fake = pytree.tree_map_only(Tensor, mode.from_tensor, (state, args, dict(kwargs)))
    # With gradients on, torch does not take the fused shortcuts that only inference has.
    with quiet(), _named(model, calls.path), mode, torch.enable_grad(), calls:
        functional_call(model, *fake, tie_weights=True)
    return calls


@contextmanager
def _named(model: nn.Module, path: list[str]) -> Iterator[None]:
    """Keeps the names of the running modules in `path`."""

    def leave(*_: Any) -> None:
        path.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _m, _i, name=name: path.append(name)))
        hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _sentences(model: nn.Module, evaluation: _Calls, training: _Calls) -> Iterator[str]:
    places = [path for path in training.dropout if path not in evaluation.dropout]
    if places:
        shares = ", ".join(f"{p:g}" for p in sorted({training.dropout[path] for path in places}))
        yield (
            f"dropout inside attention (p = {shares}) is off, in training too: {_named_places(places)}. torch.export "
            f"fixes the argument of the fused kernel; eager attention keeps it as a layer"
        )
    differing: dict[str, list[str]] = {}
    for path in sorted({*training.made, *evaluation.made}):
        module = model.get_submodule(path)
        ours, theirs = (calls.made.get(path, Counter()) for calls in (evaluation, training))
        if isinstance(module, _KNOWN) or {k: v for k, v in ours.items() if k not in _LAYERS} == {
            k: v for k, v in theirs.items() if k not in _LAYERS
        }:
            continue
        differing.setdefault(type(module).__name__, []).append(path)
    for kind, paths in differing.items():
        yield (
            f"{kind} does something else in training than in evaluation; the program always does what it does in "
            f"evaluation: {_named_places(paths)}"
        )


def _named_places(paths: list[str]) -> str:
    first = paths[0] or "the model itself"
    return first if len(paths) == 1 else f"{first} and {len(paths) - 1} more"
