"""Models of torchvision, with random weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from .case import BATCH, Case, image, unsettle

_NETS: tuple[tuple[str, str, int, Mapping[str, Any]], ...] = (
    ("alexnet", "plain", 64, {}),
    ("squeezenet1_1", "fire modules", 64, {}),
    ("googlenet", "Inception branches", 64, {"aux_logits": False}),
    ("shufflenet_v2_x0_5", "channel split and shuffle", 64, {}),
    ("mnasnet0_5", "searched", 64, {}),
    ("vit_b_16", "ViT of nn.MultiheadAttention", 64, {"image_size": 64}),
    ("maxvit_t", "blocks and grids of attention", 224, {}),
    ("lraspp_mobilenet_v3_large", "segmentation, dict of outputs", 64, {"weights_backbone": None}),
    ("deeplabv3_mobilenet_v3_large", "segmentation, dilated", 64, {"weights_backbone": None}),
)


def torchvision_cases() -> Iterator[Case]:
    """All of them; torchvision is imported when a model is built."""
    for name, family, size, options in _NETS:
        yield Case(name, "torchvision", family, partial(_build, name, size, options), name == "shufflenet_v2_x0_5")
    yield Case("r3d_18", "torchvision", "video, 3-D convolution", _video)
    yield Case("raft_small", "torchvision", "optical flow: two inputs, recurrent, list of outputs", _flow)
    yield Case("ssdlite320_mobilenet_v3_large", "torchvision", "detection, boxes chosen by their scores", _detection)


def _build(name: str, size: int, options: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    import torchvision

    return unsettle(torchvision.models.get_model(name, weights=None, num_classes=10, **options)), image(size)


def _video() -> tuple[nn.Module, Any]:
    import torchvision

    return unsettle(torchvision.models.get_model("r3d_18", weights=None, num_classes=10)), torch.randn(
        BATCH, 3, 4, 32, 32
    )


def _flow() -> tuple[nn.Module, Any]:
    import torchvision

    return unsettle(torchvision.models.get_model("raft_small", weights=None)), (image(128), image(128))


def _detection() -> tuple[nn.Module, Any]:
    import torchvision

    name = "ssdlite320_mobilenet_v3_large"
    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=10)
    return unsettle(model), (list(image(320)),)
