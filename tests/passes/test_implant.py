"""What `implant` does to graph and weights, by form; and what it refuses, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from nets import captured, rebatch
from oracle import assert_close, outputs
from torch import Tensor, nn

from secateur.errors import Allowed, Refused, UserError
from secateur.passes.capture import capture
from secateur.passes.implant import implant, implantable
from secateur.passes.implant_form import FORMS, RANKED, Implant, default_rank, factors, filters, weights_of
from secateur.passes.mask import mask
from secateur.passes.program import Program
from secateur.passes.prune import apply
from secateur.passes.verify import verify


def assert_masked(program: Program, implants: dict, keep: dict | None = None, init: str = "center") -> Program:
    """Checks an implanted program against the oracle at two batch sizes; returns it."""
    made = implant(program, implants, keep=keep, init=init).program
    verify(made)
    masked = mask(program, keep or {}, implants=implants, init=init)
    for batch in (2, 3):
        inputs = tuple(rebatch(x, batch, batch) for x in program.example_args)
        for actual, expected in zip(outputs(made, inputs), outputs(masked, inputs), strict=True):
            assert_close(actual, expected, 1e-5, "output")
    return made


def net(*layers: nn.Module, channels: int = 3, size: int = 9) -> Program:
    torch.manual_seed(0)
    return capture(nn.Sequential(*layers).eval(), torch.randn(2, channels, size, size))


def test_a_convolution_becomes_two_branches_that_fold_as_before() -> None:
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var)
    program = net(nn.Conv2d(3, 8, 3, stride=2, padding=1), norm, nn.ReLU(), nn.Conv2d(8, 2, 3))
    made = assert_masked(program, {"0": Implant((1, 6))}, {"0": [0, 1, 2, 5, 6]})
    module = made.module()
    kept, small = module.get_submodule("0"), module.get_submodule("0_implant")
    assert isinstance(kept, nn.Conv2d) and isinstance(small, nn.Conv2d)
    assert (kept.out_channels, small.out_channels, small.kernel_size, small.stride) == (3, 2, (1, 1), (2, 2))
    dense = program.module().state_dict()
    assert torch.equal(kept.weight, dense["0.weight"][[0, 2, 5]])
    assert torch.equal(small.weight[..., 0, 0], dense["0.weight"][[1, 6], :, 1, 1])
    assert small.bias is not None and torch.equal(small.bias, dense["0.bias"][[1, 6]])
    # Consumers are permuted: kept channels first, then the implanted ones.
    assert torch.equal(module.get_parameter("3.weight"), dense["3.weight"][:, [0, 2, 5, 1, 6]])
    names = [node.name if node.op == "call_module" else str(node.target) for node in made.graph.nodes]
    joined = names.index("aten.cat.default")
    assert names.count("aten.relu.default") == 2 and max(i for i, n in enumerate(names) if "relu" in n) < joined
    assert not any("index" in name or "gather" in name for name in names)
    assert made.history[-2:] == ("apply", "implant")


def test_dynamic_lengths_and_notes_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3)).eval()
    program = replace(capture(model, torch.randn(2, 3, 9, 9), dynamic={"input": [2, 3]}), notes=("a note",))
    made = implant(program, {"0": Implant((1, 6))}, keep={"0": [0, 1, 6]}).program
    assert (made.dynamic, made.notes) == ({"input": (2, 3)}, ("a note",))
    x = torch.randn(3, 3, 7, 12)
    (expected,) = outputs(mask(program, {"0": [0, 1, 6]}, implants={"0": Implant((1, 6))}), (x,))
    assert_close(outputs(made, (x,))[0], expected, 1e-5, "output")


def test_the_program_stays_and_the_same_arguments_give_the_same_result() -> None:
    program = captured("resnet_b")
    before = {k: v.clone() for k, v in program.module().state_dict().items()}
    implants = {"conv1": Implant((0, 3)), "layer2.0.conv1": Implant((5, 1, 2), "low-rank", 1)}
    one, two = (implant(program, implants).program for _ in range(2))
    assert all(torch.equal(v, before[k]) for k, v in program.module().state_dict().items())
    assert str(one.graph) == str(two.graph)
    for a, b in zip(one.module().state_dict().values(), two.module().state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["resnet_a", "resnet_b", "preact", "densenet", "plain", "biased"])
def test_every_group_that_may_have_implants_at_once(name: str) -> None:
    """Residual streams, with and without weights on their shortcuts, pre-activation, concatenation."""
    program = captured(name)
    fit = [g for g in program.groups if isinstance(implantable(program, g), Allowed) and g.width > 2]
    assert fit
    implants = {g.name: Implant(tuple(range(0, g.width, 3))) for g in fit}
    keep = {g.name: [u for u in g.units if u % 4 != 2 or u % 3 == 0] for g in fit if g.frozen is None}
    made = assert_masked(program, implants, keep)
    assert sum(p.numel() for p in made.module().parameters()) < sum(
        p.numel() for p in apply(program, keep).module().parameters()
    )


def test_a_tied_group_gets_an_implant_in_every_convolution_with_a_kernel() -> None:
    program = captured("resnet_b")
    made = implant(program, {"layer2.0.conv2": Implant((1, 4))})
    layers = {s.rows.layer for s in made.stand_ins}
    assert "layer2.0.conv2" in layers and not any("shortcut" in layer for layer in layers)
    shortcut = next(path for path in made.rows if "shortcut" in path)
    width = len(made.rows[shortcut].index)
    assert made.rows[shortcut].index.tolist() == [u for u in range(width) if u not in (1, 4)] + [1, 4]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_its_oracle_and_trains(form: str) -> None:
    program = net(nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(8, 2, 1), channels=4)
    chosen = Implant((6, 0, 3, 4), form, 1 if form in RANKED else None)
    made = assert_masked(program, {"0": chosen}, {"0": [0, 2, 3, 4, 6, 7]})
    made = assert_masked(program, {"0": chosen}, init="zeros")
    made.train().module()(torch.randn(2, 4, 9, 9)).square().sum().backward()
    assert all(p.grad is not None for p in made.module().parameters())
    assert any("implant" in name for name, _ in made.module().named_parameters()) == (form != "center")


@pytest.mark.parametrize("form", RANKED)
def test_full_rank_is_the_filters_themselves(form: str) -> None:
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64)
    assert_close(filters(factors(weight, form, 36), form, (3, 3)), weight, 1e-12, form)


@pytest.mark.parametrize("form", RANKED)
def test_the_default_rank_costs_no_more_than_a_pointwise_implant(form: str) -> None:
    shape = (24, 32, 3, 3)
    rank = default_rank(shape, form)
    assert rank is not None and weights_of(shape, form, rank) <= 24 * 32 < weights_of(shape, form, rank + 1)
    parts = factors(torch.randn(shape), form, rank)
    assert sum(part.numel() for part in parts) == weights_of(shape, form, rank)


def test_linear_layers_on_tokens_take_a_low_rank_form() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm = nn.Linear(6, 16), nn.Linear(16, 6), nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + self.two(F.gelu(self.one(x))))

    torch.manual_seed(0)
    program = capture(Tokens().eval(), torch.randn(2, 5, 6))
    made = assert_masked(program, {"one": Implant((3, 4, 8, 9, 10, 15), "low-rank", 2)}, {"one": range(2, 16)})
    assert made.module().get_submodule("one_implant.1").out_features == 6


def test_all_units_of_a_layer_may_be_implanted() -> None:
    program = net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    made = assert_masked(program, {"0": Implant(tuple(range(8)))})
    assert [str(n.target) for n in made.graph.find_nodes(op="call_module")] == ["0_implant", "2"]


def test_an_implanted_program_can_be_implanted_and_pruned_again() -> None:
    program = net(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 2, 1))
    once = implant(program, {"0": Implant((1, 5))}).program
    groups = {g.name: g.width for g in once.groups if g.frozen is None}
    assert groups == {"0": 10, "0_implant": 2}
    twice = assert_masked(once, {"0": Implant((0, 4))}, {"0": range(9)})
    assert "0_implant2" in dict(twice.module().named_modules())


class Split(nn.Module):
    """A convolution whose channels are used by their places."""

    def __init__(self, use, width: int = 8) -> None:
        super().__init__()
        self.conv, self.head, self.use = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(width, 2, 1), use

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.use(self.conv(x)))


@pytest.mark.parametrize(
    ("use", "width", "reason"),
    [
        (lambda x: torch.cat(x.split([3, 5], 1)[::-1], 1), 8, "by their places"),
        (lambda x: F.glu(x, 1), 4, "ties its channels"),
        (lambda x: F.pixel_shuffle(x, 2), 2, "ties its channels"),
        (lambda x: x + x.flip(1), 8, "different orders"),
        (lambda x: x * torch.linspace(0, 1, 8)[:, None, None], 8, None),
        (lambda x: x[:, [3, 1, 1, 7]], 4, "by their places"),
    ],
)
def test_channels_that_are_used_by_their_places_are_refused(use, width: int, reason: str | None) -> None:
    program = capture(Split(use, width).eval(), torch.randn(2, 3, 4, 4))
    group = program.groups[0]
    answer = implantable(program, group)
    assert isinstance(answer, Refused) and (reason is None or reason in answer.reason) and answer.hint
    with pytest.raises(UserError, match="cannot have implants") as caught:
        implant(program, {group.name: Implant((0,))})
    assert caught.value.why == answer.reason and caught.value.where == answer.where


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(3, 8, 1), "1×1 already"),
        (nn.Conv2d(3, 8, 3), "padding is smaller"),
        (nn.Conv2d(3, 8, 4, padding=2), "no centre"),
        (nn.ConvTranspose2d(3, 8, 3, padding=1), "ConvTranspose2d"),
        (nn.Conv2d(6, 9, 3, padding=1, groups=3), "grouped"),
        (nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), "padding is smaller"),
    ],
)
def test_layers_without_a_pointwise_implant(layer: nn.Module, reason: str) -> None:
    inputs, width = int(layer.in_channels), int(layer.out_channels)  # type: ignore[arg-type]
    program = net(layer, nn.ReLU(), nn.Conv2d(width, 2, 1), channels=inputs)
    answer = implantable(program, program.groups[0])
    assert isinstance(answer, Refused) and reason in answer.reason


def test_outputs_keep_their_order() -> None:
    program = net(nn.Conv2d(3, 8, 3, padding=1))
    answer = implantable(program, program.groups[0])
    assert isinstance(answer, Refused) and "output" in answer.reason
    assert_masked(program, {"0": Implant((6, 7))})  # the last ones lie last already


@pytest.mark.parametrize(
    ("implants", "keep", "message"),
    [
        ({"conv": Implant((0,))}, {}, r"no group is called 'conv'[\s\S]*did you mean conv1"),
        ({"conv1": Implant((0, 8))}, {}, r"'conv1' has no unit 8[\s\S]*0 to 7"),
        ({"conv1": Implant((1, 1))}, {}, "implanted twice"),
        ({"conv1": Implant((1,))}, {"conv1": [0, 2]}, "unit 1 of group 'conv1' is removed and implanted"),
        ({"conv1": Implant((1,), "point")}, {}, r"unknown implant 'point'[\s\S]*there is: pointwise"),
        ({"conv1": Implant((1,), "low-rank")}, {}, "needs a rank"),
        ({"conv1": Implant((1,), "pointwise", 2)}, {}, "has no rank"),
        ({"conv1": Implant((1,), "low-rank", 1)}, {}, "no smaller than the filters"),
    ],
)
def test_wrong_requests(implants: dict, keep: dict, message: str) -> None:
    program = captured("resnet_a")
    with pytest.raises(UserError, match=message):
        implant(program, implants, keep=keep)


def test_an_unknown_start() -> None:
    with pytest.raises(UserError, match="did you mean zeros"):
        implant(captured("plain"), {}, init="zero")
