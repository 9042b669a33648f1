"""Refusals say what stands in the way, in which module and line, and what to do; doing that helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_same_function
from torch import Tensor, nn

from secateur.errors import Refused, UnsupportedError
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.verify import verify


class Alibi(nn.Module):
    """Attention with a slope for every head on the distance of positions (Bloom), heads merged into the batch."""

    def __init__(self, held: bool, heads: int = 3, size: int = 4) -> None:
        super().__init__()
        width = heads * size
        self.qkv, self.out, self.heads = nn.Linear(6, 3 * width), nn.Linear(width, 2), heads
        self.held = held
        if held:
            self.register_buffer("slopes", self.numbers())

    def numbers(self) -> Tensor:
        return torch.pow(0.5, torch.arange(1, 1 + self.heads, dtype=torch.float32))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, t, _ = x.shape
        slopes = self.slopes if self.held else torch.pow(0.5, torch.arange(1, 1 + self.heads, dtype=torch.float32))
        distance = ((mask.cumsum(-1) - 1) * mask)[:, None, :]
        bias = (slopes[..., None] * distance).reshape(n * self.heads, 1, t)
        q, k, v = (
            part.view(n, t, self.heads, -1).transpose(1, 2).reshape(n * self.heads, t, -1)
            for part in self.qkv(x).chunk(3, -1)
        )
        scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=0.5)
        y = torch.bmm(scores.softmax(-1), v).view(n, self.heads, t, -1).transpose(1, 2).reshape(n, t, -1)
        return self.out(y)


def frozen(program: Program, name: str) -> Refused:
    refused = {group.name: group.frozen for group in program.groups}[name]
    assert refused is not None
    return refused


def test_slopes_that_forward_makes_and_what_the_hint_is_worth() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(2, 5, 6), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    refused = frozen(capture(Alibi(held=False), inputs), "qkv")
    assert refused.reason == "aten.baddbmm joins it with numbers that forward makes, which cannot shrink"
    assert "buffer" in refused.hint
    line = next(int(n) for n in re.findall(r"test_reasons\.py:(\d+)", refused.hint))
    assert "torch.arange(1, 1 + self.heads" in Path(__file__).read_text().splitlines()[line - 1]

    program = capture(Alibi(held=True), inputs)
    widths = {group.name: group.width for group in program.groups if group.frozen is None}
    assert widths == {"qkv": 3}
    more = torch.randn(3, 5, 6), torch.ones(3, 5, dtype=torch.int64)
    smaller = assert_same_function(program, {"qkv": [0, 2]}, [inputs, more], 1e-5)
    assert smaller.module().get_buffer("slopes").shape == (2,)


@dataclass(frozen=True)
class Case:
    """A function between two convolutions that keeps the channels of the first, and one that follows the hint.

    Attributes:
        call: From [N, 6, 4, 4] to [N, width, …]; the input has 3 channels as well, as the second argument.
        reason: Part of what is said.
        hint: Part of what is advised.
        better: What the hint leads to; None if it says that nothing can be done here.
        width: Channels that the second convolution reads.
    """

    call: Callable[[Tensor, Tensor], Tensor]
    reason: str
    hint: str
    better: Callable[[Tensor, Tensor], Tensor] | None = None
    width: int = 6


class Between(nn.Module):
    """The function runs inside of a module of its own, `middle.step`."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 6, 1), nn.Module(), nn.Conv2d(width, 2, 1)
        self.middle.step = Step(call)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle.step(self.first(x), x))


class Step(nn.Module):
    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.call(y, x)


def shifted(y: Tensor, n: int) -> Tensor:
    return torch.cat([y[:, n:], y[:, :n]], 1)


CASES = {
    "cumulative sum": Case(lambda y, x: y.cumsum(1), "aten.cumsum runs over its channels", "layers between"),
    "softmax": Case(lambda y, x: y.softmax(1), "aten.softmax runs over its channels", "layers between"),
    "norm": Case(
        lambda y, x: F.layer_norm(y.movedim(1, 3), [6]).movedim(3, 1), "LayerNorm averages over its channels",
        "release_widths",
    ),
    "group norm": Case(
        lambda y, x: F.group_norm(y, 1), "GroupNorm averages over its channels", "several groups",
        lambda y, x: F.group_norm(y, 3),
    ),
    "unknown": Case(lambda y, x: torch.special.bessel_j0(y), "no rule for aten.special_bessel_j0", "register_rule"),
    "input": Case(
        lambda y, x: y + x.repeat(1, 2, 1, 1), "aten.add joins it with an input of the network", "prune the layers"
    ),
    "alone": Case(
        lambda y, x: y * y[:, 2:3].sigmoid(), "it is used on its own", "a layer of its own",
    ),
    "pairs": Case(
        lambda y, x: (y.mean((2, 3))[:, :, None] * y.mean((2, 3))[:, None, :]).unsqueeze(1).repeat(1, 6, 1, 1),
        "gives every pair of its channels an element of its own", "average one of the two sides",
    ),
    "self products": Case(
        lambda y, x: (y.flatten(2).transpose(1, 2) @ y.flatten(2)).unsqueeze(1).repeat(1, 6, 1, 1),
        "aten.matmul sums over its channels", "whole heads",
    ),
    "computed index": Case(
        lambda y, x: y[:, x.sum((0, 2, 3)).argsort().repeat(2)], "selects its channels by computed or several indices",
        "by a list of numbers", lambda y, x: y[:, [0, 3, 5, 1, 1, 2]],
    ),
    "gather": Case(
        lambda y, x: y.gather(1, x.long().clamp(0, 5).repeat(1, 2, 1, 1)), "aten.gather selects from its channels",
        "another axis", lambda y, x: y.gather(3, x.long().clamp(0, 3)[:, :1].expand(-1, 6, -1, -1)),
    ),
    "reflected channels": Case(
        lambda y, x: F.pad(y[:, None], (0, 0, 0, 0, 1, 1), mode="reflect")[:, 0], "pads its channels", "a constant",
        lambda y, x: F.pad(y, (0, 0, 0, 0, 1, 1)), 8,
    ),
    "roll": Case(
        lambda y, x: y.roll(2, 1), "aten.roll shifts its channels", "torch.cat", lambda y, x: shifted(y, 2),
    ),
    "triangle": Case(
        lambda y, x: y.movedim(1, 3).tril().movedim(3, 1), "depends on the position of its channels", "layers between"
    ),
    "linear along pixels and channels": Case(
        lambda y, x: F.linear(y.flatten(1), torch.ones(6, 96))[..., None, None], "sums over its channels", "heads"
    ),
}  # fmt: skip


def groups_of(call: Callable[[Tensor, Tensor], Tensor], width: int) -> Program:
    torch.manual_seed(0)
    return capture(Between(call, width).eval(), torch.randn(2, 3, 4, 4))


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_names_the_operation_the_module_and_the_line(name: str) -> None:
    case = CASES[name]
    found = [group.frozen for group in groups_of(case.call, case.width).groups if group.frozen is not None]
    refused = next(refused for refused in found if case.reason in refused.reason)
    assert re.fullmatch(r"middle\.step(\.\w+norm)?, test_reasons\.py:\d+", refused.where)
    assert case.hint in refused.hint
    assert len(CASES) > 14 and all(other.where and other.hint for other in found)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.better])
def test_doing_what_the_hint_says_makes_it_prunable(name: str) -> None:
    case = CASES[name]
    assert case.better is not None
    width = case.better(torch.zeros(2, 6, 4, 4), torch.zeros(2, 3, 4, 4)).shape[1]
    program = groups_of(case.better, width)
    free = {group.name: group.width for group in program.groups if group.frozen is None}
    assert "first" in free
    keep = {name: range(1, count) for name, count in free.items()}
    assert_same_function(program, keep, [(torch.randn(3, 3, 4, 4),)], 1e-5)


class Lstm(nn.Module):
    """A small convolutional network whose columns are read by an LSTM (text recognition)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.rnn, self.hidden, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.one(x)), 2)
        x = F.relu(self.two(x)).mean(2).transpose(1, 2)
        return self.head(F.relu(self.hidden(self.rnn(x)[0])))


class Gru(nn.Module):
    """Words to classes by the last state of two layers of GRU in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lift = nn.Embedding(11, 6), nn.Linear(6, 9)
        self.squeeze = nn.Linear(9, 4)
        self.rnn = nn.GRU(4, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.hidden, self.head = nn.Linear(10, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.squeeze(F.relu(self.lift(self.embed(ids))))
        return self.head(F.relu(self.hidden(self.rnn(x)[0].mean(1))))


def words(batch: int, length: int = 5) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(batch))


RECURRENT = {
    "lstm": (Lstm, lambda n: torch.randn(n, 1, 8, 12), "two", {"one": 6, "hidden": 7}),
    "gru": (Gru, words, "squeeze", {"embed": 6, "lift": 9, "hidden": 8}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_stay_and_the_others_shrink(name: str) -> None:
    build, inputs, touched, widths = RECURRENT[name]
    torch.manual_seed(0)
    program = capture(build().eval(), inputs(2))
    refused = frozen(program, touched)
    assert refused.reason == f"it enters or leaves a recurrent layer ({name.upper()}), whose widths stay"
    assert re.fullmatch(r"rnn, test_reasons\.py:\d+", refused.where)
    assert "layers before and after it" in refused.hint
    assert {group.name: group.width for group in program.groups if group.frozen is None} == widths
    keep = {group: [0, 2, 3] for group in widths}
    smaller = assert_same_function(program, keep, [(inputs(n),) for n in (2, 3)], 1e-5)
    verify(smaller)
    weights = [p for name, p in smaller.module().named_parameters() if name.startswith("rnn.")]
    assert sum(p.numel() for p in weights) == sum(p.numel() for p in build().rnn.parameters())


def test_recurrent_layers_that_should_run_at_any_length_are_refused_by_name() -> None:
    """torch.export takes the length of the examples for that of every input."""
    with pytest.raises(UnsupportedError, match="a length that should be dynamic is fixed by the model") as caught:
        capture(Gru().eval(), words(2, 6), dynamic={"ids": [1]})
    assert "recurrent layers take one length: rnn (GRU)" in caught.value.why
    assert "pad" in caught.value.hint


def test_a_recurrent_layer_whose_length_comes_from_an_image_of_any_width() -> None:
    torch.manual_seed(0)
    program = capture(Lstm().eval(), torch.randn(2, 1, 8, 12), dynamic={"x": [3]})
    batches = [(torch.randn(n, 1, 8, width),) for n, width in ((2, 12), (3, 7), (1, 30))]
    assert_same_function(program, {"one": [0, 4], "hidden": [1, 2, 5]}, batches, 1e-5)
    for batch in batches:
        assert program.module()(*batch).shape == (len(batch[0]), batch[0].shape[3] // 2, 3)


def test_outputs_single_channels_and_shared_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.one, self.two = nn.Embedding(11, 6), nn.Linear(4, 6), nn.Linear(3, 6)
            self.head = nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            x = self.embed(ids).relu()
            return self.head(self.one(x[..., :4]) + self.two(x[..., 3:]))  # the fourth is read by both

    groups = capture(Net(), words(2)).groups
    alone = next(g.frozen for g in groups if g.frozen is not None and "single unit" in g.frozen.reason)
    assert re.fullmatch(r"embed, test_reasons\.py:\d+", alone.where) and "give the layer more" in alone.hint
    head = next(g.frozen for g in groups if g.frozen is not None and "weights are shared" in g.frozen.reason)
    assert re.fullmatch(r"head, test_reasons\.py:\d+", head.where) and "of its own" in head.hint
    last = frozen(capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 3)), "2")
    assert last.reason == "it is an output of the network" and last.where and "before the last ones" in last.hint
