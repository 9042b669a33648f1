"""A captured program is the user's model: same values, same names, same behaviour in training."""

import copy
import functools
import inspect
import re
from collections import namedtuple
from dataclasses import dataclass

import net_modules
import pytest
import torch
import torch.nn.functional as F
from nets import NETS, rebatch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.passes.capture import capture


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def call(network, inputs):
    return network(**inputs) if isinstance(inputs, dict) else network(*inputs)


@functools.cache
def _captured(name):
    model, inputs = NETS[name]()
    return model, inputs, capture(model, inputs)


def captured(name):
    """Model, inputs and program, each the test's own."""
    model, inputs, program = _captured(name)
    return copy.deepcopy(model), inputs, program.clone()


def assert_equal(left, right):
    left, left_spec = pytree.tree_flatten(left)
    right, right_spec = pytree.tree_flatten(right)
    assert left_spec == right_spec
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def total(output):
    return sum(leaf.square().mean() for leaf in pytree.tree_leaves(output))


@pytest.mark.parametrize("name", NETS)
def test_computes_the_same_in_eval_and_training(name):
    model, inputs, program = captured(name)
    assert program.static_batch is None
    other = rebatch(inputs, 5)
    with torch.no_grad():
        assert_equal(call(program.module(), inputs), call(model, inputs))
        assert_equal(call(program.module(), other), call(model, other))

    model.train(), program.train()
    outputs = []
    for network in (model, program.module()):
        torch.manual_seed(3)  # Dropout draws the same masks.
        output = call(network, other)
        total(output).backward()
        outputs.append(output)
    assert_equal(*outputs)
    parameters = dict(program.graph_module.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(parameters[parameter_name].grad, parameter.grad, rtol=1e-5, atol=1e-7)
    buffers = dict(program.graph_module.named_buffers())
    assert_equal(buffers, {key: value for key, value in model.named_buffers() if key in buffers})
    assert len(buffers) == len(dict(model.named_buffers()))
    model.eval(), program.eval()
    with torch.no_grad():
        assert_equal(call(program.module(), other), call(model, other))


@pytest.mark.parametrize("name", NETS)
def test_keeps_names_and_leaves_the_model_alone(name):
    model, inputs = NETS[name]()
    model.train()
    before = copy.deepcopy(model.state_dict())
    program = capture(model, inputs)
    assert model.training and all(child.training for child in model.modules())
    assert_equal(dict(model.state_dict()), dict(before))
    names = {key for key, _ in model.named_parameters()}
    assert names == {key for key, _ in program.graph_module.named_parameters()}
    own = {id(p) for p in model.parameters()}
    assert not own & {id(p) for p in program.graph_module.parameters()}


@pytest.mark.parametrize("name", NETS)
def test_every_weighted_call_is_a_layer_and_every_node_is_described(name):
    model, _, program = captured(name)
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [o for o in operations if any(word in o for word in ("conv", "linear", "norm", "dropout", "embedding"))]
    assert not [o for o in operations if o.split(".")[1].endswith("_")]
    for node in program.graph.nodes:
        assert "val" in node.meta
        if node.op in ("call_function", "call_module"):
            path = node.meta["path"].removesuffix("_1")  # The second layer of `shared_kernel`.
            assert isinstance(model.get_submodule(path), nn.Module)
            # Layers called by nn.Sequential, and sizes of inputs, come from no line of the user's.
            assert re.fullmatch(r"(net_modules\.py:\d+)?", node.meta["source"])


def test_residual_network_reads_like_the_model():
    _, _, program = captured("resnet_a")
    names = [node.name for node in program.graph.nodes]
    assert {"conv1", "layer1_0_conv1", "layer1_0_relu", "layer1_0_add", "layer2_0_shortcut_pad", "linear"} <= set(names)
    add = next(node for node in program.graph.nodes if node.name == "layer2_0_add")
    assert add.meta["path"] == "layer2.0"
    line = int(add.meta["source"].removeprefix("net_modules.py:"))
    assert "out += self.shortcut(x)" in inspect.getsource(net_modules).splitlines()[line - 1]
    assert tuple(add.meta["val"].shape) == (2, 16, 4, 4)
    assert type(program.graph_module.get_submodule("layer1.0.conv1")) is nn.Conv2d


def test_a_module_called_twice_is_one_module_and_ties_stay_tied():
    _, _, program = captured("shared")
    calls = [str(node.target) for node in program.graph.find_nodes(op="call_module")]
    assert calls.count("shared") == 2
    assert {"first", "second"} <= set(calls)
    network = program.graph_module
    assert network.get_parameter("first.weight") is network.get_parameter("second.weight")


def test_one_kernel_with_two_dilations_is_two_layers_with_one_parameter():
    _, _, program = captured("shared_kernel")
    convolutions = [m for m in program.graph_module.modules() if isinstance(m, nn.Conv2d)]
    assert {m.dilation for m in convolutions} == {(1, 1), (2, 2)}
    assert convolutions[0].weight is convolutions[1].weight


def test_takes_the_signature_of_the_model():
    model, inputs = NETS["keyword_input"]()
    program = capture(model, (inputs["pixels"],), example_kwargs={"features": inputs["features"]})
    with torch.no_grad():
        expected = model(inputs["pixels"], features=inputs["features"])
        assert_equal(program.module()(inputs["pixels"], features=inputs["features"]), expected)
        assert_equal(program.run_example(), expected)


def test_a_batch_of_one_is_dynamic_too_and_the_example_is_kept():
    model, inputs = NETS["resnet_b"]()
    one = rebatch(inputs, 1)
    program = capture(model, one)
    assert program.static_batch is None
    assert program.example_args[0].shape[0] == 1
    assert next(iter(program.graph.nodes)).meta["val"].shape[0] == 1
    with torch.no_grad():
        for batch in (1, 2, 7):
            other = rebatch(inputs, batch)
            assert_equal(program.module()(*other), model(*other))


def test_a_tensor_alone_is_one_positional_argument():
    model, (image,) = NETS["plain"]()
    assert capture(model, image).example_args == (image,)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(4, -1))


class EvenBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).view(x.shape[0] // 2, 2, 2)


def test_a_fixed_batch_is_captured_with_its_reason():
    model = FixedBatch()
    program = capture(model, torch.randn(4, 3, 4))
    assert program.static_batch == "the model fixes the batch size to 4"
    x = torch.randn(4, 3, 4)
    assert_equal(program.module()(x), model(x))


def test_a_batch_with_a_condition_is_fixed():
    program = capture(EvenBatch(), torch.randn(4, 3))
    assert program.static_batch is not None and "batch size 5" in program.static_batch


Pair = namedtuple("Pair", "logits hidden")


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


@pytest.mark.parametrize("make", [Pair, Output])
def test_other_output_classes_become_builtin_containers(make):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor):
            return make(self.fc(x), x + 1)

    model, x = Model(), torch.randn(2, 3)
    expected = model(x)
    got = capture(model, x).module()(x)
    if make is Output:
        assert_equal(got, {"logits": expected.logits, "hidden": expected.hidden})
    else:
        assert type(got) is tuple
        assert_equal(got, tuple(expected))


class Writes(nn.Module):
    """In-place operations that others can see, and some that nobody can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        seen = y.view(y.shape[0], -1)
        y += 1
        self.steps += 1
        z = (y * 1).mul_(2).clamp_(min=0)
        z[:, 0] = 0
        return seen + z.flatten(1), x + self.steps


def test_in_place_operations_that_can_be_seen_stay():
    torch.manual_seed(0)
    model, x = Writes(), torch.randn(2, 3, 4, 4)
    program = capture(model, x)
    assert model.steps.item() == 0
    operations = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.aten.add_.Tensor in operations
    assert torch.ops.aten.clamp.default in operations and torch.ops.aten.clamp_.default not in operations
    for _ in range(2):
        assert_equal(program.module()(x), model(x))
    assert program.graph_module.steps.item() == model.steps.item() == 2


def test_an_in_place_operation_that_keeps_its_type_is_not_promoted():
    class Keep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            half = x.half()
            half += x
            return half

    x = torch.randn(2, 3)
    assert capture(Keep(), x).module()(x).dtype is torch.float16


class Functional(nn.Module):
    """Functional calls: parameters that are no layer's, dropout and batch norm without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.proj_weight = nn.Parameter(torch.randn(5, 4))
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.kernel, padding=1)
        y = F.batch_norm(y, self.mean, self.var, training=self.training)
        y = F.dropout(y.mean((2, 3)), 0.25, self.training)
        return F.linear(F.dropout(y, 0.5, self.training), self.proj_weight)


def test_functional_calls_become_layers():
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(2, 3, 4, 4)
    program = capture(model, x)
    kinds = sorted(
        type(program.graph_module.get_submodule(str(node.target))).__name__
        for node in program.graph.find_nodes(op="call_module")
    )
    assert kinds == ["BatchNorm2d", "Conv2d", "Dropout", "Dropout", "Linear"]
    model.train(), program.train()
    results = []
    for network in (model, program.module()):
        torch.manual_seed(1)
        results.append(network(x))
    assert_equal(*results)
    assert_equal(program.eval().module()(x), model.eval()(x))


def test_dropout_that_is_always_on_stays_on():
    class MonteCarlo(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    program = capture(MonteCarlo(), torch.ones(4, 100))
    assert (program.module()(torch.ones(4, 100)) == 0).any()


def test_cumulative_batch_norm_keeps_its_momentum():
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None))
    program = capture(model, torch.randn(4, 3))
    model.train(), program.train()
    for seed in (1, 2):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        assert_equal(program.module()(x), model(x))
    assert_equal(dict(program.graph_module.named_buffers()), dict(model.named_buffers()))


def test_what_is_not_used_is_dropped():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x)
            return self.used(x)

    program = capture(Unused(), torch.randn(2, 3))
    assert {name for name, _ in program.graph_module.named_parameters()} == {"used.weight", "used.bias"}


def test_says_nothing(capfd):
    capture(FixedBatch(), torch.randn(4, 3, 4))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_a_view_after_a_dropped_contiguous_is_captured():
    """In eval mode dropout is the identity, and export drops the `contiguous` that the view needs."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.fc = nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.drop(x[:, ::2]).contiguous().view(x.shape[0], -1))

    model, x = Net().eval(), torch.randn(3, 4, 2, 2)
    program = capture(model, x)
    torch.testing.assert_close(program.module()(x), model(x))
