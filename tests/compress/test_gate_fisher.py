"""gate-fisher and taylor against single samples, in chunks as in whole batches."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS, rebatch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from secateur.compress.sensitivity import gate_jacobian
from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.table import Sensitivity
from secateur.errors import EnvironmentLacksError, UserError
from secateur.passes.capture import capture
from secateur.passes.gates import insert_gates
from secateur.passes.program import Program


def double(inputs: Any) -> Any:
    return tree_map(lambda t: t.double() if t.is_floating_point() else t, inputs)


def case(name: str) -> tuple[Program, list[Any]]:
    model, inputs = NETS[name]()
    program = capture(model.double(), double(inputs))
    torch.manual_seed(3)
    batches = []
    for size in (4, 3):
        batch = double(rebatch(inputs, size, seed=size))
        batches.append((batch if isinstance(batch, dict) else tuple(batch), torch.randint(0, 3, (size,))))
    return program, batches


def vector(table: Sensitivity, part: str = "delta_loss") -> np.ndarray:
    return np.concatenate([getattr(scores, part) for scores in table.groups.values()])


def logits(output: Any) -> Tensor:
    return output["logits"] if isinstance(output, dict) else output


def loss(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(logits(output), target)


def single_gradients(program: Program, batches: list[Any]) -> np.ndarray:
    """[samples, scored units], each sample on its own."""
    gated = insert_gates(program)
    rows = []
    for inputs, target in batches:
        for i in range(len(target)):
            gates = torch.ones(1, gated.units, dtype=torch.float64, requires_grad=True)
            gated.source.values = gates
            one = tree_map(lambda t, i=i: t[i : i + 1], inputs)
            out = gated.module(**one) if isinstance(one, dict) else gated.module(*one)
            rows.append(torch.autograd.grad(loss(out, target[i : i + 1]), gates)[0][0])
    starts = [gated.groups[g.name] for g in program.groups if g.frozen is None and g.producers]
    return torch.stack(rows).numpy()[:, np.concatenate([np.arange(s, s + w) for s, w in starts])]


@pytest.mark.parametrize("name", ["resnet_a", "mobilenet", "resnext", "shared", "keyword_input", "conv1d"])
def test_scores_are_those_of_single_samples(name: str) -> None:
    program, batches = case(name)
    single = single_gradients(program, batches)

    def check(table: Sensitivity, values: np.ndarray, unit: str) -> None:
        assert table.unit == unit and table.facts["samples"] == 7
        np.testing.assert_allclose(vector(table), np.abs(values.mean(0)), rtol=1e-7, atol=1e-12)
        error = values.std(0, ddof=1) / np.sqrt(7)
        np.testing.assert_allclose(vector(table, "std_error"), error, rtol=1e-7, atol=1e-12)

    check(rank(program, batches, loss, method="gate-fisher"), single**2 / 2, "loss")
    check(rank(program, batches, loss, method="taylor"), np.abs(single), "score")
    check(rank(program, batches, loss, method="taylor", per_sample=False), single, "score")


def test_mean_loss_and_facts() -> None:
    program, batches = case("plain")
    facts = rank(program, batches, loss, method="gate-fisher").facts
    with torch.no_grad():
        mean = sum(len(y) * float(loss(program.module()(*x), y)) for x, y in batches) / 7
    assert facts["mean_loss"] == pytest.approx(mean)
    assert facts["dtype"] == "float64" and facts["device"] == "cpu" and facts["batches"] == 2
    assert facts["torch"] == torch.__version__ and facts["seconds"] > 0


class Hungry(nn.Module):
    """Stands for a network that takes too much memory for more than a few samples."""

    def __init__(self, network: nn.Module, most: int) -> None:
        super().__init__()
        self.network, self.most, self.sizes = network, most, []

    def forward(self, x: Tensor) -> Any:
        self.sizes.append(len(x))
        if len(x) > self.most:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return self.network(x)


class TimeFirst(nn.Module):
    """Output [tokens, samples, classes]: a loss of a whole batch needs its pieces joined on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x.transpose(0, 1))))


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the tokens that count: not a mean of the means of parts."""
    return F.cross_entropy(output.permute(1, 2, 0), target, ignore_index=0)


@pytest.mark.parametrize("method", ["gate-fisher", "taylor", "gate-ggn"])
def test_out_of_memory_halves_the_chunk_and_changes_nothing(method: str, monkeypatch, caplog) -> None:
    torch.manual_seed(0)
    program = capture(TimeFirst().double().eval(), torch.randn(2, 5, 3).double())
    batches = [(torch.randn(size, 5, 3).double(), torch.randint(0, 4, (size, 5))) for size in (7, 6)]
    whole = rank(program, batches, token_loss, method=method)
    assert "samples_a_chunk" not in whole.facts
    hungry: list[Hungry] = []

    def starved(program: Program) -> Any:
        gated = insert_gates(program)
        hungry.append(Hungry(gated.module, 2))
        object.__setattr__(gated, "module", hungry[-1])
        return gated

    monkeypatch.setattr(gate_jacobian, "insert_gates", starved)
    with caplog.at_level(logging.WARNING, "secateur"):
        parts = rank(program, batches, token_loss, method=method)
    assert parts.facts["samples_a_chunk"] == 2 and "out of memory with 7 samples at once" in caplog.text
    assert [size for size in hungry[0].sizes if size > 2] == [7, 4]
    np.testing.assert_allclose(vector(parts), vector(whole), rtol=1e-12)
    np.testing.assert_allclose(vector(parts, "std_error"), vector(whole, "std_error"), rtol=1e-10)

    def hopeless(program: Program) -> Any:
        gated = insert_gates(program)
        object.__setattr__(gated, "module", Hungry(gated.module, 0))
        return gated

    monkeypatch.setattr(gate_jacobian, "insert_gates", hopeless)
    with pytest.raises(EnvironmentLacksError, match="memory does not suffice"):
        rank(program, batches, token_loss, method=method)


def test_draws_are_the_same_in_chunks(monkeypatch) -> None:
    torch.manual_seed(0)
    program = capture(TimeFirst().double().eval(), torch.randn(2, 5, 3).double())
    batches = [(torch.randn(6, 5, 3).double(), torch.randint(0, 4, (6, 5)))]
    whole = rank(program, batches, token_loss, method="gate-ggn", draws=4, interactions=True)

    def starved(program: Program) -> Any:
        gated = insert_gates(program)
        object.__setattr__(gated, "module", Hungry(gated.module, 3))
        return gated

    monkeypatch.setattr(gate_jacobian, "insert_gates", starved)
    parts = rank(program, batches, token_loss, method="gate-ggn", draws=4, interactions=True)
    np.testing.assert_allclose(vector(parts), vector(whole), rtol=1e-12)
    np.testing.assert_allclose(parts.interactions, whole.interactions, rtol=1e-10, atol=1e-14)


def test_a_network_that_does_not_run_on_the_data() -> None:
    program, _ = case("plain")
    with pytest.raises(UserError, match="does not run on a batch"):
        rank(program, [(torch.randn(4, 2, 8, 8).double(), torch.zeros(4).long())], loss, method="gate-fisher")


def test_half_precision_is_refused() -> None:
    model, (image,) = NETS["plain"]()
    program = capture(model.bfloat16(), image.bfloat16())
    with pytest.raises(UserError, match="weights are bfloat16"):
        rank(program, [(image.bfloat16(), torch.zeros(2).long())], loss, method="taylor")
