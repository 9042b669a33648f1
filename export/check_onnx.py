"""What every ONNX model of ours has to pass before it is written."""

from __future__ import annotations

import onnx
from onnx import shape_inference


def check_onnx(model: onnx.ModelProto) -> None:
    """Checks a model: the ONNX checker, strict shape inference, no dead initialisers, unique node names.

    Raises:
        onnx.checker.ValidationError: The graph is not valid ONNX.
        onnx.shape_inference.InferenceError: Shapes or types contradict each other.
        ValueError: It has dead initialisers or nodes of the same name.
    """
    onnx.checker.check_model(model, full_check=True)
    try:
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError:
        # Propagating values takes every small constant for a vector: a column times a row has "invalid ranks" to it.
        shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    dead = dead_initialisers(model)
    if dead:
        raise ValueError(f"nothing reads the initialisers {dead}")
    names = [node.name for node in model.graph.node]
    if len(names) != len(set(names)):
        raise ValueError("two nodes have the same name")


def dead_initialisers(model: onnx.ModelProto) -> list[str]:
    """Initialisers that no node reads and no output is."""
    used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
    return [tensor.name for tensor in model.graph.initializer if tensor.name not in used]
