"""What follows a layer, and refits that mind it: against the values of the network and errors worked out by hand."""

from __future__ import annotations

import pytest
import torch
from nets import randomise_bn
from torch import Tensor, fx, nn

from secateur.compress.heal.lockstep import schedule
from secateur.compress.heal.ridge import reconstruct
from secateur.compress.heal.tail import Tail, tail_of, tails_of
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.prune import apply


class _Blocks(nn.Module):
    """Two residual blocks; the skip connection of the second is computed after its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm0 = nn.BatchNorm2d(8)
        self.inner1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.outer1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.inner2 = nn.Conv2d(8, 12, 3, padding=1)
        self.outer2 = nn.Conv2d(12, 8, 1)
        self.skip2 = nn.Conv2d(8, 8, 1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.stem(x)).relu()
        x = (self.norm2(self.outer1(self.norm1(self.inner1(x)).relu())) + x).relu()
        branch = self.outer2(self.inner2(x).relu())
        x = branch + self.skip2(x)
        return self.last(x.mean((2, 3)))


def _program(seed: int = 0) -> tuple[Program, Tensor, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(seed)
    model = randomise_bn(_Blocks()).double()
    x = torch.randn(64, 3, 8, 8, dtype=torch.float64)
    return capture(model, (x[:2],)), x, [(part, torch.zeros(16)) for part in x.split(16)]


def _tail(program: Program, path: str) -> Tail:
    return tail_of(program, next(n for n in program.graph.nodes if str(n.target) == path))


def _values(program: Program, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    class Record(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            found[n.name] = super().run_node(n)
            return found[n.name]

    with torch.no_grad():
        Record(program.graph_module).run(x)
    return found


@pytest.mark.parametrize(
    ("path", "rectified", "summed"),
    [
        ("stem", True, False),
        ("inner1", True, False),
        ("outer1", True, True),
        ("inner2", True, False),
        ("outer2", False, True),
        ("last", False, False),
    ],
)
def test_a_tail_gives_the_value_that_is_read_next(path: str, rectified: bool, summed: bool) -> None:
    program, x, _ = _program()
    values, tail = _values(program, x), _tail(program, path)
    assert (tail.rectified, bool(tail.other)) == (rectified, summed)
    y = values[next(n.name for n in program.graph.nodes if str(n.target) == path)]
    shape = [1, -1, *[1] * (y.ndim - 2)]
    result = tail.scale.reshape(shape) * y + tail.shift.reshape(shape)
    if tail.other:
        result = result + values[tail.other]
    torch.testing.assert_close(result, values[tail.end])


def test_a_skip_connection_that_comes_later_is_scheduled_earlier() -> None:
    program, _, _ = _program()
    tail = _tail(program, "outer2")
    names = [node.name for node in program.graph.nodes]
    assert names.index(tail.other) > names.index("outer2")
    order = [node.name for node in schedule(program.graph, {"outer2": [tail.other]})]
    assert order.index(tail.other) < order.index("outer2") and sorted(order) == sorted(names)
    for node in program.graph.nodes:
        assert all(order.index(other.name) < order.index(node.name) for other in node.all_input_nodes)


def test_of_two_layers_that_meet_in_a_sum_one_waits_for_the_other() -> None:
    """Both waited once, and the search for an order never ended."""
    program, _, loader = _program()
    nodes = {str(node.target): node for node in program.graph.nodes}
    layers = [nodes["outer2"], nodes["skip2"]]
    found = tails_of(program, layers, [node.name for node in program.graph.nodes])
    assert [bool(found[node.name].other) for node in layers] == [False, True]
    keep = {"inner2": (0, 2, 4, 6, 8)}
    reconstruct(program, apply(program, keep), keep, loader)


def test_errors_of_skip_connections_are_made_up_for() -> None:
    program, x, loader = _program(1)
    keep = {"inner1": (0, 1, 2), "inner2": (0, 2, 4, 6, 8)}
    smaller = apply(program, keep)
    dense, errors = _values(program, x), {}
    for tails in (False, True):
        refitted = reconstruct(program, smaller, keep, loader, tails=tails)
        values = _values(refitted, x)
        errors[tails] = [float((values[n] - dense[n]).norm()) for n in (_tail(program, "outer2").end, "last")]
    assert errors[True][0] < errors[False][0]
    assert errors[True][1] < errors[False][1]


def test_what_a_relu_cuts_off_need_not_agree() -> None:
    program, x, loader = _program(2)
    keep = {"stem": (0, 1, 2, 3, 4)}
    smaller = apply(program, keep)
    kept, dense, errors = list(keep["stem"]), _values(program, x), {}
    end = _tail(program, "inner1").end
    for tails in (False, True):
        values = _values(reconstruct(program, smaller, keep, loader, tails=tails), x)
        passed = values[end].relu() - dense[end].relu()
        errors[tails] = float(passed.square().sum()), float((values[end] - dense[end]).square().sum())
    assert kept == [0, 1, 2, 3, 4]
    assert errors[True][0] < errors[False][0]  # of what passes
    assert errors[True][1] > errors[False][1]  # of all, which plain least squares minimises


def test_a_channel_that_batch_norm_silences_is_no_trouble() -> None:
    program, x, loader = _program(3)
    with torch.no_grad():
        program.graph_module.get_submodule("norm2").weight[2] = 0.0
        program.graph_module.get_submodule("norm1").weight[:] = 0.0
    keep = {"inner2": range(6)}
    refitted = reconstruct(program, apply(program, keep), keep, loader)
    assert all(bool(torch.isfinite(t).all()) for t in refitted.module().state_dict().values())
    torch.testing.assert_close(_values(refitted, x)["relu"], _values(program, x)["relu"])
