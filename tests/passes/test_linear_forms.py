"""Linear layers that are written as products, and parameters that the graph applies by itself."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same_function
from torch import Tensor, nn

from secateur.passes.capture import capture
from secateur.passes.program import Program

TURNS = {
    "T": lambda w: w.T,
    "t": lambda w: w.t(),
    "mT": lambda w: w.mT,
    "transpose": lambda w: w.transpose(-1, 0),
    "permute": lambda w: w.permute(1, 0),
}


class Turned(nn.Module):
    """Two linear layers as products with the transposed weight (Falcon); the bias is added by hand."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.up, self.down, self.form = nn.Linear(6, 10), nn.Linear(10, 6), form

    def product(self, x: Tensor, layer: nn.Linear) -> Tensor:
        return x @ TURNS[self.form](layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.product(x, self.up) + self.up.bias).relu()
        return self.down.bias + self.product(hidden, self.down)


class Added(nn.Module):
    """A transposed weight of its own and a bias added to the product (GPT-2 without `addmm`)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(10))
        self.last = nn.Linear(10, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.last((x @ self.weight + self.bias).relu())


def layers(program: Program) -> int:
    return sum(node.op == "call_module" for node in program.graph.nodes)


def pruned(program: Program, *shape: int) -> Program:
    """Half of the ten hidden neurons gone, as masking them has it; both batch sizes."""
    (group,) = [group for group in program.groups if group.frozen is None]
    assert group.width == 10
    batches = [(torch.randn(batch, *shape[1:]),) for batch in (2, 5)]
    return assert_same_function(program, {group.name: [0, 2, 3, 4, 9]}, batches, 1e-5)


@pytest.mark.parametrize("form", TURNS)
@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 6)])
def test_products_with_a_bias_are_layers_that_shrink(form, shape):
    torch.manual_seed(0)
    model, x = Turned(form), torch.randn(shape)
    program = capture(model, x)
    assert (
        layers(program) == 2
        and len(program.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)) == 1
    )
    assert {name for name, _ in program.module().named_parameters()} == dict(model.named_parameters()).keys()
    assert sum(p.numel() for p in pruned(program, *shape).module().parameters()) == 5 * 6 * 2 + 5 + 6


@pytest.mark.parametrize("shape", [(2, 6), (2, 3, 6)])
def test_the_bias_of_a_transposed_weight_joins_its_layer(shape):
    torch.manual_seed(0)
    program = capture(Added(), torch.randn(shape))
    assert layers(program) == 2
    pruned(program, *shape)


def test_a_shared_layer_is_one_layer():
    class Twice(Turned):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    torch.manual_seed(0)
    model, x = Twice("T"), torch.randn(3, 6)
    program = capture(model, x)
    assert {name for name, _ in program.module().named_modules() if name} == {"up", "down"}
    pruned(program, 3, 6)


def test_a_product_with_the_matrix_itself_is_another_thing():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.transpose(0, 0) + x @ self.weight.permute(0, 1) + x @ self.weight.t()

    model, x = Plain(), torch.randn(3, 6)
    torch.testing.assert_close(capture(model, x).module()(x), model(x))


class ByHand(nn.Module):
    """The bias is not the layer's: it comes later, earlier, twice, or scaled."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.fc, self.last, self.form = nn.Linear(6, 10), nn.Linear(10, 6), form

    def hidden(self, x: Tensor) -> Tensor:
        weight, bias = self.fc.weight, self.fc.bias
        match self.form:
            case "later":
                return F.linear(x, weight).relu() + bias
            case "earlier":
                shift = bias.exp()
                return F.linear(x, weight) * shift
            case "earlier, product":
                shift = bias.exp()
                return (x @ weight.T) * shift
            case "twice":
                product = x @ weight.T
                return (product + bias).relu() + product
            case "scaled":
                return torch.add(x @ weight.T, bias, alpha=2)
            case "both":
                return F.linear(x, weight, bias).relu() + F.linear(x, weight)
            case "product of both":
                return (x @ weight.T + bias).relu() + bias
            case _:
                return torch.addmm(bias, x, weight.T)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x))


FORMS = ["later", "earlier", "earlier, product", "twice", "scaled", "both", "product of both", "addmm"]


@pytest.mark.parametrize("form", FORMS)
def test_a_bias_is_added_as_often_as_the_model_adds_it(form):
    torch.manual_seed(0)
    model, x = ByHand(form), torch.randn(3, 6)
    program = capture(model, x)
    torch.testing.assert_close(program.module()(x), model(x))
    assert sum(p.numel() for p in program.module().parameters()) == sum(p.numel() for p in model.parameters())
    pruned(program, 3, 6)


def test_scales_next_to_a_weight_keep_their_name(tmp_path):
    """A tensor that its owner's layer does not apply (a quantised weight's scale) stays where it is."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.scale = nn.Parameter(torch.randn(10, 6)), nn.Parameter(torch.rand(10))

        def forward(self, x: Tensor) -> Tensor:
            gain = self.scale * 2
            return F.linear(x, self.weight) * gain

    torch.manual_seed(0)
    model, x = nn.Sequential(Scaled(), nn.ReLU(), nn.Linear(10, 6)), torch.randn(3, 6)
    program = capture(model, x)
    assert {name for name, _ in program.module().named_parameters()} == dict(model.named_parameters()).keys()
    pruned(program, 3, 6)
    program.save(tmp_path / "p")
    torch.testing.assert_close(Program.load(tmp_path / "p").module()(x), model(x))


def test_normalisation_scaled_by_hand():
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(6).eval(), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            n = self.norm
            x = F.batch_norm(x, n.running_mean, n.running_var, None, None, False, 0.1, n.eps)
            return self.last(x * (1 + n.weight) + n.bias)

    torch.manual_seed(0)
    model, x = Norm(), torch.randn(3, 6)
    nn.init.normal_(model.norm.weight)
    torch.testing.assert_close(capture(model, x).module()(x), model(x))
