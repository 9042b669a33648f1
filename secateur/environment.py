"""What numbers were measured with: versions and processor."""

from __future__ import annotations

import platform
from typing import Any

from .version import __version__


def environment() -> dict[str, Any]:
    """Versions of what computes, and the facts of this processor."""
    import numpy
    import onnx
    import onnxruntime
    import torch

    from .export.latency import cpu_facts

    return {
        "secateur": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        **cpu_facts(),
    }
