"""Writes small artifacts for the gates: a trained-looking network of two convolutions as FP32 and as Q/DQ ONNX."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from secateur.export.manifest import FORMAT, describe_files, write_manifest
from secateur.passes.capture import capture

CLASSES, SIZE, WIDTH = 4, 12, 16
DATA = """
import torch

def loaders(folder, batches=8):
    x, y = torch.load(folder + "/test.pt", weights_only=True)
    test = list(zip(x.split(32), y.split(32)))[:batches]
    return {"train": test, "test": test}

def broken(**_):
    raise RuntimeError("disk on fire")
"""


class TwoConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.head(x.mean((2, 3)))


def network(seed: int = 0) -> TwoConvs:
    """Random weights; the head is centred and scaled so that every class is predicted for some input."""
    torch.manual_seed(seed)
    net = TwoConvs().eval()
    x, _ = samples(net=None)
    with torch.no_grad():
        logits = net(x)
        net.head.weight *= 1.0 / logits.std(0).unsqueeze(1)
        net.head.bias.zero_()
        net.head.bias -= net(x).mean(0)
    return net


def samples(net: nn.Module | None, n: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in [0, 1] of various contrast, with the labels that `net` gives them."""
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(n, 3, SIZE, SIZE, generator=generator) * torch.rand(n, 3, 1, 1, generator=generator)
    with torch.no_grad():
        return x, torch.zeros(n, dtype=torch.long) if net is None else net(x).argmax(1)


def float_onnx(net: TwoConvs, path: Path) -> None:
    """Writes the network as FP32 ONNX."""
    nodes, constants = [], []
    value = "x"
    for name in ("conv1", "conv2"):
        value = _conv(
            name, value, _constant(f"{name}.weight", getattr(net, name).weight, constants), net, nodes, constants
        )
    _tail(net, value, nodes, constants)
    _save(nodes, constants, path)


def int8_onnx(net: TwoConvs, path: Path) -> None:
    """Writes the network as ONNX with Q/DQ around every convolution, on the grid that onnxruntime runs in integers."""
    nodes, constants = [], []
    with torch.no_grad():
        x, _ = samples(None)
        first = torch.relu(net.conv1(x))
        ranges = {"x": 1.0, "conv1": float(first.max()), "conv2": float(torch.relu(net.conv2(first)).max())}
    value = _quantised("x", "x", ranges["x"], nodes, constants)
    for name in ("conv1", "conv2"):
        weight = getattr(net, name).weight.detach()
        scale = weight.abs().amax((1, 2, 3)) / 127
        codes = torch.round(weight / scale[:, None, None, None]).to(torch.int8)
        inputs = [
            _constant(f"{name}.codes", codes, constants),
            _constant(f"{name}.scale", scale, constants),
            _constant(f"{name}.zero", torch.zeros(len(scale), dtype=torch.int8), constants),
        ]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.weight"], axis=0))
        value = _conv(name, value, f"{name}.weight", net, nodes, constants)
        value = _quantised(name, value, ranges[name], nodes, constants)
    _tail(net, value, nodes, constants)
    _save(nodes, constants, path)


def write_artifact(
    folder: Path, *, dense: bool = True, program: bool = True, integer: bool = True, seed: int = 0
) -> Path:
    """Writes a whole artifact, with the test data and its factory beside it.

    Args:
        folder: Gets `out/`, `data.py` and `test.pt`.
        dense: With the dense baseline.
        program: With the torch program.
        integer: The model is the quantised one, else the FP32 one.
        seed: Weights.
    """
    net, out = network(seed), folder / "out"
    out.mkdir(parents=True)
    (int8_onnx if integer else float_onnx)(net, out / "model.onnx")
    if dense:
        float_onnx(net, out / "dense.onnx")
    if program:
        capture(net, (samples(None, 2)[0],)).save(out / "program")
    seal(out)
    torch.save(samples(net), folder / "test.pt")
    (folder / "data.py").write_text(DATA)
    return out


def seal(out: Path) -> None:
    """Writes the manifest that fits the files of an artifact."""
    write_manifest(out, {"format": FORMAT, "target": "ort-cpu", "files": describe_files(out)})


def _constant(name: str, value: torch.Tensor, constants: list) -> str:
    constants.append(numpy_helper.from_array(np.ascontiguousarray(value.detach().numpy()), name))
    return name


def _conv(name: str, value: str, weight: str, net: nn.Module, nodes: list, constants: list) -> str:
    bias = _constant(f"{name}.bias", getattr(net, name).bias, constants)
    nodes.append(helper.make_node("Conv", [value, weight, bias], [f"{name}.out"], name=name, pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"], name=f"{name}.relu"))
    return f"{name}.relu"


def _quantised(name: str, value: str, highest: float, nodes: list, constants: list) -> str:
    grid = [
        _constant(f"{name}.step", torch.tensor(highest / 255), constants),
        _constant(f"{name}.origin", torch.tensor(0, dtype=torch.uint8), constants),
    ]
    nodes.append(helper.make_node("QuantizeLinear", [value, *grid], [f"{name}.q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *grid], [f"{name}.dq"]))
    return f"{name}.dq"


def _tail(net: TwoConvs, value: str, nodes: list, constants: list) -> None:
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    head = [_constant("head.weight", net.head.weight, constants), _constant("head.bias", net.head.bias, constants)]
    nodes.append(helper.make_node("Gemm", ["flat", *head], ["logits"], name="head", transB=1))


def _save(nodes: list, constants: list, path: Path) -> None:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    graph = helper.make_graph(nodes, "two_convs", [image], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
