"""Makes torchvision importable where its compiled operators cannot be loaded."""

from __future__ import annotations

import torch
from torch.library import Library

_BOXES = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def declare() -> Library | None:
    """Declares the two operators that torchvision's Python code refers to while it is imported.

    Its wheels are built for CUDA, and their compiled part does not load beside a CPU build of torch; its classifiers
    are plain Python and need none of it, and timm imports it.

    Returns:
        What holds the declaration (it ends with this object); None if the operators are there.
    """
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _BOXES)
    return library
