"""Which values are quantised, and that inserting quantisers that do nothing changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import NETS, rebatch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.passes.capture import capture
from secateur.passes.fold import batch_norm_to_conv, fold_batch_norm, remove_dropout
from secateur.passes.program import Program
from secateur.passes.quant.grid import Grid, QuantScheme
from secateur.passes.quant.insert import insert_fake_quant
from secateur.passes.quant.modules import FakeQuantize, QuantLinear
from secateur.passes.quant.placement import place

SCHEME = QuantScheme()


class _Unrounded(nn.Module):
    def forward(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        return weight


def _folded(module: nn.Module, inputs: object) -> Program:
    return batch_norm_to_conv(fold_batch_norm(remove_dropout(capture(module, inputs))))


def _image(module: nn.Module, channels: int = 3) -> Program:
    return _folded(module.eval(), (torch.randn(2, channels, 8, 8),))


def _values(program: Program, scheme: QuantScheme = SCHEME) -> dict[str, bool]:
    """Quantised values by node name, with whether they cannot be negative."""
    return {node.name: value.non_negative for node, value in place(program, scheme).values.items()}


@pytest.mark.parametrize("name", sorted(NETS))
@pytest.mark.parametrize("tail", [True, False])
def test_disabled_quantisers_change_nothing(name: str, tail: bool) -> None:
    module, inputs = NETS[name]()
    program = _folded(module, inputs)
    quantized = insert_fake_quant(program, QuantScheme(float_tail=tail))
    for layer in quantized.module().modules():
        if isinstance(layer, FakeQuantize):
            layer.enabled = False
        elif hasattr(layer, "weight_quant"):
            layer.weight_quant = _Unrounded()
    batch = rebatch(inputs, 3)
    args, kwargs = ((), batch) if isinstance(batch, dict) else (batch, {})
    with torch.no_grad():
        expected, got = program.module()(*args, **kwargs), quantized.module()(*args, **kwargs)
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(got), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_value_is_quantised_once_and_integer_layers_read_codes(name: str) -> None:
    module, inputs = NETS[name]()
    quantized = insert_fake_quant(_folded(module, inputs), SCHEME)
    layers = dict(quantized.module().named_modules())
    for node in quantized.graph.nodes:
        called = [u for u in node.users if isinstance(layers.get(str(u.target)), FakeQuantize)]
        assert len(called) <= 1
        if called and not isinstance(layers.get(str(node.target)), QuantLinear):
            others = [u for u in node.users if u not in called and isinstance(u.meta.get("val"), Tensor)]
            assert not others, f"{node} is read in float by {others} beside its codes"
        if type(layers.get(str(node.target))).__name__.startswith("Quant"):
            assert isinstance(layers[str(node.args[0].target)], FakeQuantize)


def test_quantiser_comes_after_the_fused_relu() -> None:
    program = _image(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 1)))
    assert _values(program) == {"input_1": False, "_1_relu": True, "_3_hardtanh": True, "_4": False}


def test_relu_with_a_bound_above_zero_is_not_fused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).clamp(-1.0, 1.0))

    assert list(_values(_image(Net()))) == ["x", "first", "clamp", "second"]


def test_a_value_that_two_read_is_quantised_before_its_relu() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out = self.first(x)
            return self.second(F.relu(out)) + out

    assert _values(_image(Net())) == {"x": False, "first": False, "relu": True, "second": False, "add": False}


def test_movements_share_the_grid_of_their_input() -> None:
    module, inputs = NETS["resnet_a"]()
    values = place(_folded(module, inputs), SCHEME).values
    shared = {node.name: value.owner.name for node, value in values.items() if value.owner is not node}
    assert set(shared.values()) == {"layer1_1_relu_1"}
    assert {n.split("_")[-1] for n in shared} >= {"slice", "pad"}
    quantized = insert_fake_quant(_folded(module, inputs), SCHEME)
    calls = [n for n in quantized.graph.nodes if n.target == "quantizers.layer1_1_relu_1"]
    assert len(calls) == len(shared) + 1


def test_non_negativity_goes_through_pools_sums_and_concatenation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out = F.relu(self.first(x))
            pooled = F.avg_pool2d(out, 2) + F.max_pool2d(out, 2)
            return self.second(torch.cat([pooled, pooled - 1.0], 1))

    values = _values(_image(Net()))
    assert values["add"] and values["avg_pool2d"] and values["max_pool2d"]
    assert not values["sub"] and not values["cat"] and not values["x"]


def test_the_tail_stays_float_and_says_why() -> None:
    module, inputs = NETS["resnet_b"]()
    placement = place(_folded(module, inputs), SCHEME)
    assert "linear" not in placement.layers and "avg_pool2d" not in {n.name for n in placement.values}
    assert [name for name, _ in placement.journal] == ["linear"]
    whole = place(_folded(module, inputs), QuantScheme(float_tail=False))
    assert "linear" in whole.layers and {"avg_pool2d", "reshape"} <= {n.name for n in whole.values}
    assert not whole.journal
    no_linear = place(_folded(module, inputs), QuantScheme(float_tail=False, quantize_linear=False))
    assert "linear" not in no_linear.layers


def test_what_has_no_integer_kernel_is_listed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3)
            self.circular = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")

        def forward(self, x: Tensor) -> Tensor:
            return self.circular(F.silu(self.up(self.down(x))))

    placement = place(_image(Net()), SCHEME)
    reasons = {name: refused.reason for name, refused in placement.journal}
    assert "transposed" in reasons["up"]
    assert any("down" in path for path in placement.layers) and "up" not in placement.layers


def test_float_operations_between_codes_are_listed() -> None:
    program = _image(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3)))
    placement = place(program, SCHEME)
    assert [(n, r.reason.split(" ")[0]) for n, r in placement.journal] == [("_1_silu", "silu")]
    assert list(_values(program)) == ["input_1", "_0", "_1_silu", "_2"]


def test_only_the_linear_layers_of_a_transformer_lose_precision() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            normed = self.norm(x)
            return self.down(F.gelu(self.up(normed))) + normed

    program = _folded(Block(), (torch.randn(2, 5, 8),))
    assert list(_values(program)) == ["norm", "gelu"]
    quantized = insert_fake_quant(program, SCHEME)
    add = next(n for n in quantized.graph.nodes if n.name == "add")
    assert {a.name for a in add.args} == {"down", "norm"}


@pytest.mark.parametrize(("name", "skip"), [("resnet_b", {"relu", "layer1_0_relu_1"}), ("preact", set())])
def test_skip_scheme_leaves_the_residual_branch_float(name: str, skip: set[str]) -> None:
    scheme = QuantScheme(activation=Grid(narrow=True), layer_outputs=False, add_inputs="skip")
    module, inputs = NETS[name]()
    quantized = insert_fake_quant(_folded(module, inputs), scheme)
    layers = dict(quantized.module().named_modules())
    adds = [n for n in quantized.graph.nodes if getattr(n.target, "_opname", "") == "add"]
    assert adds
    for add in adds:
        assert sorted(isinstance(layers.get(str(a.target)), FakeQuantize) for a in add.args) == [False, True]
    owners = {n.name for n in place(_folded(module, inputs), scheme).values}
    assert skip <= owners
    for quantizer in layers.values():
        if isinstance(quantizer, FakeQuantize):
            quantizer.set_range(-1.0, 2.0)
            assert int(quantizer.zero_point) == 0


def test_outputs_of_the_network_come_from_integer_kernels() -> None:
    quantized = insert_fake_quant(_image(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))), SCHEME)
    output = next(n for n in quantized.graph.nodes if n.op == "output")
    read = pytree.tree_leaves(output.args)
    assert [n.name for n in read] == ["_2_quantized"]
