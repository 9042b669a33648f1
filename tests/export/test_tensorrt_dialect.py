"""TensorRT's dialect: where Q/DQ stands, codes of the file and of the simulation, FP16 around what is not integer."""

import functools

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from nets import IMAGE_NETS, NETS, captured, rebatch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.export.lower import lower_program
from secateur.export.ort_session import open_session, run
from secateur.export.targets import TARGETS
from secateur.export.tensorrt.half import to_half
from secateur.export.tensorrt.legality import check_legality
from secateur.passes.capture import capture
from secateur.passes.quant.modules import FakeQuantize

TARGET = TARGETS["tensorrt-rtx"]


class Encoder(nn.Module):
    """One transformer block."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(50, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, ids):
        x = self.embed(ids)
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (layer(x).view(split).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = self.norm1(x + self.o(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


@functools.cache
def case(name):
    """Calibrated program, what it lowers to, inputs and outputs."""
    if name == "encoder":
        torch.manual_seed(0)
        x = torch.randint(0, 50, (4, 8))
        program = capture(Encoder().eval(), (x,))
    else:
        program = captured(name)
        x = rebatch(program.example_args, 8)[0]
    program, _ = prepare(program, TARGET.scheme)
    program = calibrate(program, [(x, torch.zeros(len(x)))]).eval()
    with torch.no_grad():
        return program, lower_program(program, TARGET), x, program.module()(x).numpy()


every_net = pytest.mark.parametrize("name", [*IMAGE_NETS, "encoder"])


@every_net
def test_the_file_is_legal_and_computes_what_training_simulates(name):
    _, lowered, x, expected = case(name)
    assert not [finding for finding in check_legality(lowered.model) if finding.illegal]
    session = open_session(lowered.model, literal=True)
    (got,) = run(session, {session.get_inputs()[0].name: x.numpy()}).values()
    assert got.dtype == np.float32
    error = np.abs(got - expected).reshape(len(x), -1).max(axis=1) / np.ptp(expected)
    # FP16 has 11 bits; a value that it moves across the middle between two codes moves one code.
    assert np.median(error) < 2e-3
    assert error.max() < 2e-2


@every_net
def test_codes_and_scales_of_the_file_are_those_of_the_program(name):
    program, lowered, _, _ = case(name)
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in lowered.model.graph.initializer}
    seen = 0
    for path, module in program.module().named_modules():
        if isinstance(module, FakeQuantize):
            assert held[f"{path}.scale"] == module.scale.numpy() and held[f"{path}.scale"].dtype == np.float32
            assert held[f"{path}.zero_point"] == 0 and held[f"{path}.zero_point"].dtype == np.int8
            seen += 1
        elif hasattr(module, "integer_weight"):
            codes, scales = module.integer_weight()
            stored = held.get(f"{path}.weight", held.get(f"{path}.weight.T", np.zeros(0)).T)
            assert (stored == codes.numpy()).all() and (held[f"{path}.weight_scale"] == scales.detach().numpy()).all()
            assert scales.shape == (codes.shape[0],)
            seen += 1
    assert seen >= 4


def test_only_the_skip_edge_of_an_addition_is_quantised():
    for name in ("resnet_a", "resnet_b", "mobilenet", "resnext"):
        model = case(name)[1].model
        made = {output: node.op_type for node in model.graph.node for output in node.output}
        additions = [node for node in model.graph.node if node.op_type == "Add"]
        assert len(additions) > 1
        for node in additions:
            kinds = sorted("Dequantize" if "Dequantize" in made[x] else "float" for x in node.input if "/half" not in x)
            assert kinds in (["Dequantize", "float"], []), node.name  # none: the last one runs in FP16


def test_a_shortcut_that_moves_codes_keeps_their_grid():
    program = case("resnet_a")[0]
    quantisers = [str(n.target) for n in program.graph.nodes if n.op == "call_module" and "quantizers" in str(n.target)]
    assert len(quantisers) == len(set(quantisers)) + 1  # option A: slice and pad of a value that is on a grid


def test_the_residual_stream_of_a_transformer_stays_float():
    _, lowered, _, _ = case("encoder")
    made = {output: node for node in lowered.model.graph.node for output in node.output}
    residuals = [n for n in lowered.model.graph.node if n.op_type == "Add" and not any(".bias" in x for x in n.input)]
    assert len(residuals) == 2
    for node in residuals:
        sources = [made[x].input[0] if made[x].op_type == "Cast" else x for x in node.input]
        assert all(made[source].op_type != "DequantizeLinear" for source in sources)


def test_biases_are_float():
    for name in ("plain", "encoder"):
        model = case(name)[1].model
        types = {t.name: t.data_type for t in model.graph.initializer}
        assert TensorProto.INT32 not in types.values()
        assert TensorProto.FLOAT in {kind for key, kind in types.items() if key.endswith(".bias")}


def _types(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}


@every_net
def test_what_is_not_integer_is_fp16(name):
    lowered = case(name)[1]
    types, constants = _types(lowered.model), {t.name for t in lowered.model.graph.initializer}
    made = {output: node for node in lowered.model.graph.node for output in node.output}
    half = {node.name for node in lowered.model.graph.node if types.get(node.output[0]) == TensorProto.FLOAT16}
    assert set(lowered.half) <= half
    for node in lowered.model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            integer = all(x in made and made[x].op_type == "DequantizeLinear" for x in node.input[:2])
            assert types[node.output[0]] == (TensorProto.FLOAT if integer else TensorProto.FLOAT16), node.name
        if node.op_type in ("Softmax", "LayerNormalization", "GlobalAveragePool", "Gelu"):
            assert types[node.output[0]] == TensorProto.FLOAT16
        if node.op_type == "QuantizeLinear":  # no cast between an integer kernel and its requantisation
            source = made.get(node.input[0])
            assert source is None or source.op_type != "Conv" or types[node.input[0]] == TensorProto.FLOAT
    assert constants


def test_a_float_network_becomes_half_with_float_inputs_and_outputs():
    net, (x,) = NETS["resnet_b"]()
    program = capture(net, (x,))
    full = lower_program(program, TARGETS["ort-cpu"]).model
    result = to_half(full)
    onnx.checker.check_model(result.model, full_check=True)
    assert not result.kept and len(result.half) > 20
    assert len(result.model.SerializeToString()) < 0.6 * len(full.SerializeToString())
    (a,), (b,) = (run(open_session(m), {"x": x.numpy()}).values() for m in (full, result.model))
    assert b.dtype == np.float32 and np.abs(a - b).max() < 5e-3 * np.ptp(a)


def test_values_beyond_fp16_stay_fp32():
    nodes = [
        helper.make_node("Mul", ["x", "large"], ["m"], name="m"),
        helper.make_node("Mul", ["m", "small"], ["y"], name="y"),
    ]
    constants = [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in (("large", 1e6), ("small", 1e-3))]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    result = to_half(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    assert result.half == ("y",) and result.kept[0][0] == "m" and "large" in result.kept[0][1]
    onnx.checker.check_model(result.model, full_check=True)
    (y,) = run(open_session(result.model), {"x": np.full(4, 0.01, np.float32)}).values()
    assert y == pytest.approx(10, rel=2e-3)
