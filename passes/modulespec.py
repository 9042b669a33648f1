"""What a layer is, as data: its type and hyper-parameters, without its tensors."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_CONV = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
    "padding_mode",
)
_CONV_TRANSPOSE = (*_CONV[:5], "output_padding", *_CONV[5:])
_BATCH_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_EMBEDDING = (
    "num_embeddings",
    "embedding_dim",
    "padding_idx",
    "max_norm",
    "norm_type",
    "scale_grad_by_freq",
    "sparse",
)

LAYERS: Mapping[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "Conv1d": (nn.Conv1d, _CONV),
    "Conv2d": (nn.Conv2d, _CONV),
    "Conv3d": (nn.Conv3d, _CONV),
    "ConvTranspose1d": (nn.ConvTranspose1d, _CONV_TRANSPOSE),
    "ConvTranspose2d": (nn.ConvTranspose2d, _CONV_TRANSPOSE),
    "ConvTranspose3d": (nn.ConvTranspose3d, _CONV_TRANSPOSE),
    "Linear": (nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm1d": (nn.BatchNorm1d, _BATCH_NORM),
    "BatchNorm2d": (nn.BatchNorm2d, _BATCH_NORM),
    "BatchNorm3d": (nn.BatchNorm3d, _BATCH_NORM),
    "InstanceNorm1d": (nn.InstanceNorm1d, _BATCH_NORM),
    "InstanceNorm2d": (nn.InstanceNorm2d, _BATCH_NORM),
    "InstanceNorm3d": (nn.InstanceNorm3d, _BATCH_NORM),
    "LayerNorm": (nn.LayerNorm, ("normalized_shape", "eps", "elementwise_affine", "bias")),
    "GroupNorm": (nn.GroupNorm, ("num_groups", "num_channels", "eps", "affine")),
    "Embedding": (nn.Embedding, _EMBEDDING),
    "Dropout": (nn.Dropout, ("p",)),
    "Dropout1d": (nn.Dropout1d, ("p",)),
    "Dropout2d": (nn.Dropout2d, ("p",)),
    "Dropout3d": (nn.Dropout3d, ("p",)),
    "AlphaDropout": (nn.AlphaDropout, ("p",)),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, ("p",)),
    "Identity": (nn.Identity, ()),
}
"""Layers of torch by type name: the class and the constructor arguments that are attributes of the layer as well."""

EXTENSIONS: tuple[str, ...] = (".quant.modules",)
"""Modules of this package that define further layers, imported when first needed.

Each has `MODULES`, a dict from type name to a class with `spec() -> dict` and `from_spec(dict)`.
"""


@dataclass(frozen=True)
class ModuleSpec:
    """A layer without its tensors.

    Attributes:
        type: Key of `LAYERS`, or of `MODULES` in one of the `EXTENSIONS`.
        options: Constructor arguments, JSON-like (tuples allowed).
    """

    type: str
    options: Mapping[str, Any]


def extension_types() -> dict[str, Any]:
    """Layer classes that other rooms below this package define, by type name."""
    found: dict[str, Any] = {}
    for name in EXTENSIONS:
        found.update(importlib.import_module(name, package=__package__).MODULES)
    return found


def spec_of(module: nn.Module) -> ModuleSpec | None:
    """Describes a layer; None if its type is not one that a program may hold (subclasses are other types)."""
    name = type(module).__name__
    if name in LAYERS and type(module) is LAYERS[name][0]:
        return ModuleSpec(name, {option: _option(module, option) for option in LAYERS[name][1]})
    known = extension_types()
    if name in known and type(module) is known[name]:
        return ModuleSpec(name, module.spec())  # type: ignore[operator]
    return None


def build(spec: ModuleSpec) -> nn.Module:
    """Makes the layer. Its tensors are on the meta device, or arbitrary: the caller has to `attach` the real ones.

    Raises:
        KeyError: Unknown type.
        TypeError: Options that the constructor does not take.
    """
    if spec.type in LAYERS:
        # The meta device costs no memory and draws no random numbers.
        with torch.device("meta"):
            return LAYERS[spec.type][0](**spec.options)
    return extension_types()[spec.type].from_spec(dict(spec.options))


def attach(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Sets a parameter or buffer of `module`, whichever `tensor` is, whatever was under that name before."""
    module._parameters.pop(name, None)
    module._buffers.pop(name, None)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def container(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path below `root`; plain containers are made where nothing is."""
    current = root
    for part in path.split(".") if path else ():
        child = current._modules.get(part)
        if child is None:
            child = nn.Module()
            current.add_module(part, child)
        current = child
    return current


def _option(module: nn.Module, name: str) -> Any:
    value = getattr(module, name)
    return value is not None if name == "bias" else value
