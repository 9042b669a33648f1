"""Time of onnxruntime's integer 3x3 convolution by channels in and out: what a cut width really saves on the CPU.

python benchmarks/int8_conv_widths.py
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

WIDTHS = ((16, 16), (16, 8), (16, 4), (8, 16), (4, 16), (8, 8), (4, 4), (32, 32), (32, 24), (32, 16), (16, 32))
BATCH, SIZE, ROUNDS = 32, 32, 40


def session(inputs: int, outputs: int, folder: Path) -> tuple[ort.InferenceSession, np.ndarray]:
    """A network of one convolution with unsigned activations and signed weights, and images for it."""
    rng = np.random.default_rng(0)
    arrays = {
        "scale": np.float32(0.02),
        "zero": np.uint8(0),
        "weight": rng.integers(-127, 127, (outputs, inputs, 3, 3), dtype=np.int8),
        "weight_scale": np.full(outputs, 0.01, np.float32),
        "weight_zero": np.zeros(outputs, np.int8),
    }
    names = ["x", "scale", "zero", "weight", "weight_scale", "weight_zero", "scale", "zero"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=[1, 1, 1, 1])
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.UINT8, [BATCH, width, SIZE, SIZE])
        for name, width in (("x", inputs), ("y", outputs))
    )
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    graph = helper.make_graph([node], "one_convolution", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / f"{inputs}_{outputs}")
    made = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return made, rng.integers(0, 255, (BATCH, inputs, SIZE, SIZE), dtype=np.uint8)


def kernel_times(profile: Path) -> list[float]:
    """Microseconds of every call of the convolution's kernel."""
    events = json.loads(profile.read_text())
    return [e["dur"] for e in events if e.get("args", {}).get("op_name") == "QLinearConv" and "kernel" in e["name"]]


def main() -> None:
    """Prints one row a pair of widths."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = {pair: session(*pair, Path(folder)) for pair in WIDTHS}
        for _ in range(ROUNDS):
            for one, images in sessions.values():
                one.run(None, {"x": images})
        print(f"batch {BATCH}, {SIZE}x{SIZE}, one thread, {ROUNDS} interleaved rounds, onnxruntime {ort.__version__}\n")
        print("| channels in | out | microseconds, median [quartiles] |\n|---|---|---|")
        for (inputs, outputs), (one, _) in sessions.items():
            low, middle, high = np.percentile(kernel_times(Path(one.end_profiling())), (25, 50, 75))
            print(f"| {inputs} | {outputs} | {middle:.0f} [{low:.0f}, {high:.0f}] |")


if __name__ == "__main__":
    main()
