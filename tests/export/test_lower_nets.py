"""Whole networks in onnxruntime against torch, at two batch sizes; names, inputs and outputs of the ONNX graph."""

import numpy as np
import onnx
import pytest
import torch
from nets import NETS, captured, rebatch
from onnx import shape_inference
from torch import nn
from torch.utils import _pytree as pytree

from secateur.errors import EnvironmentLacksError
from secateur.export.check_onnx import check_onnx, dead_initialisers
from secateur.export.lower import lower, lower_program, output_names
from secateur.export.ort_session import open_session, run
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture


@pytest.mark.parametrize("name", NETS)
def test_network_computes_what_torch_computes(name):
    net, example = NETS[name]()
    program = captured(name)
    lowered = lower_program(program, ORT_CPU)
    assert not lowered.fallbacks and not dead_initialisers(lowered.model) and not lowered.model.graph.value_info
    session = open_session(lowered.model)
    assert [value.name for value in session.get_outputs()] == list(output_names(program))
    for batch in (2, 5):
        inputs = rebatch(example, batch)
        with torch.no_grad():
            expected = net(**inputs) if isinstance(inputs, dict) else net(*inputs)
        names = [value.name for value in session.get_inputs()]
        feeds = dict(zip(names, (leaf.numpy() for leaf in pytree.tree_leaves(inputs)), strict=True))
        got = run(session, feeds)
        for value, reference in zip(got.values(), pytree.tree_leaves(expected), strict=True):
            np.testing.assert_allclose(value, reference.numpy(), rtol=1e-5, atol=1e-5)


def test_the_batch_axis_is_named_and_integers_stay_integers():
    (ids,) = lower(captured("embedder"), ORT_CPU).graph.input
    assert ids.type.tensor_type.elem_type == onnx.TensorProto.INT64
    assert [d.dim_param or d.dim_value for d in ids.type.tensor_type.shape.dim] == ["batch", 6]


def test_names_are_those_of_the_program():
    program = captured("plain")
    model = lower(program, ORT_CPU)
    nodes = {node.name for node in program.graph.nodes}
    parameters = {name for name, _ in program.graph_module.named_parameters()}
    assert {node.name for node in model.graph.node} <= nodes
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    assert convs and all(node.input[1] in parameters for node in convs)


def test_outputs_are_called_after_their_place():
    net, example = NETS["keyword_input"]()
    assert output_names(capture(net, example)) == ("logits", "hidden")
    net, example = NETS["two_inputs"]()
    assert output_names(capture(net, example)) == ("output_0", "output_1_aux", "output_1_maps_0")


class Awkward(nn.Module):
    """Returns an input, one value twice, and has a parameter called like a node."""

    def __init__(self):
        super().__init__()
        self.add = nn.Parameter(torch.ones(3))

    def forward(self, x):
        y = x + self.add
        return {"x": x, "twice": [y, y], "constant": self.add}


def test_outputs_that_are_inputs_constants_or_the_same_value():
    x = torch.randn(2, 3)
    program = capture(Awkward(), (x,))
    got = run(open_session(lower(program, ORT_CPU)), {"x": x.numpy()})
    expected = pytree.tree_leaves(Awkward()(x))
    assert len(got) == len(expected) == 4
    for value, reference in zip(got.values(), expected, strict=True):
        np.testing.assert_array_equal(value, reference.detach().numpy())


class Fixed(nn.Module):
    """Has its batch size written into the graph."""

    def forward(self, x):
        return x.reshape(2, 12).relu()


def test_a_fixed_batch_stays_fixed():
    program = capture(Fixed(), (torch.randn(2, 3, 4),))
    assert program.static_batch
    model = lower(program, ORT_CPU)
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 4]


def test_evaluation_semantics_whatever_the_mode_and_the_mode_is_left_alone():
    net, example = NETS["preact"]()
    program = captured("preact").train()
    model = lower(program, ORT_CPU)
    assert program.graph_module.training
    (got,) = run(open_session(model), {"x": example[0].numpy()}).values()
    np.testing.assert_allclose(got, net(*example).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_strict_shape_inference_agrees_with_the_declared_outputs():
    inferred = shape_inference.infer_shapes(lower(captured("densenet"), ORT_CPU), strict_mode=True, data_prop=True)
    conv = next(value for value in inferred.graph.value_info if value.type.tensor_type.shape.dim)
    assert conv.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_a_dead_initialiser_is_found():
    model = lower(captured("plain"), ORT_CPU)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "dead"))
    with pytest.raises(ValueError, match="dead"):
        check_onnx(model)


def test_missing_onnxruntime_is_an_error_of_the_environment(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(EnvironmentLacksError, match="pip install onnxruntime"):
        open_session("model.onnx")
