"""The trainer: resuming bit for bit, choosing an epoch, distillation, and what goes wrong."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.compress.heal.distill import class_axes, distillation_loss
from secateur.compress.heal.evaluate import cross_entropy, evaluate, top1
from secateur.compress.heal.heal import heal
from secateur.compress.heal.settings import HealSettings, TrainSettings, learning_rate
from secateur.compress.heal.start import choose
from secateur.compress.heal.train import fit, make_optimizer
from secateur.errors import UserError
from secateur.passes.capture import capture
from secateur.passes.program import Program


class Loader:
    """Images in memory, shuffled by epoch, with random noise from the global generator."""

    def __init__(self, *, shuffle: bool = True, killed_at: int | None = None) -> None:
        samples, batch = 96, 16
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(samples, 3, 8, 8, generator=generator)
        self.y = (self.x[:, 0].mean((1, 2)) > 0).long() + 2 * (self.x[:, 1].mean((1, 2)) > 0).long()
        self.batch, self.shuffle, self.killed_at = batch, shuffle, killed_at
        self.epoch = self.given = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch))
        for picked in (order if self.shuffle else torch.arange(len(self.x))).split(self.batch):
            if self.killed_at == self.given:
                raise KeyboardInterrupt
            self.given += 1
            noise = 0.05 * torch.randn(len(picked), 3, 8, 8) if self.shuffle else 0.0
            yield self.x[picked] + noise, self.y[picked]


@functools.cache
def _captured(seed: int, width: int) -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(width, width, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 4),
        )
    return capture(module.eval(), torch.zeros(2, 3, 8, 8))


def _program(seed: int = 0, width: int = 8) -> Program:
    return _captured(seed, width).clone()


def _weights(program: Program) -> dict[str, Tensor]:
    return program.module().state_dict()


def _settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"epochs": 3, "lr": 0.05, "distill_weight": 0.5, "warmup_epochs": 0.5, **changes})


def _heal_settings(**changes: Any) -> HealSettings:
    return HealSettings(**_settings(**changes).model_dump())


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adamw", "lr": 0.01}, {"precision": "bf16", "epochs": 2.4}, {"channels_last": False}]
)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    program, teacher, validation = _program(), _program(1), Loader(shuffle=False)
    options: dict[str, Any] = {"teacher": teacher, "validation": validation}
    settings = _settings(**changes)
    torch.manual_seed(1)
    whole = fit(program, Loader(), cross_entropy, settings, **options, state_dir=tmp_path / "whole")
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        fit(program, Loader(killed_at=9), cross_entropy, settings, **options, state_dir=tmp_path / "killed")
    again = fit(program, Loader(), cross_entropy, settings, **options, state_dir=tmp_path / "killed")
    assert (whole.resumed, again.resumed) == (0, 1)
    for name, tensor in _weights(whole.program).items():
        assert torch.equal(tensor, _weights(again.program)[name]), name
    timeless = [[{k: v for k, v in e.items() if k != "seconds"} for e in r.history] for r in (whole, again)]
    assert timeless[0] == timeless[1] and whole.chosen == again.chosen
    finished = fit(program, Loader(killed_at=0), cross_entropy, settings, **options, state_dir=tmp_path / "whole")
    for name, tensor in _weights(whole.program).items():
        assert torch.equal(tensor, _weights(finished.program)[name]), name


def test_state_of_another_training_is_not_continued(tmp_path: Path) -> None:
    program, settings = _program(), _settings(epochs=1)
    fit(program, Loader(), cross_entropy, settings, state_dir=tmp_path)
    assert fit(program, Loader(), cross_entropy, settings, state_dir=tmp_path).resumed == 1
    assert fit(program, Loader(), cross_entropy, _settings(epochs=1, lr=0.01), state_dir=tmp_path).resumed == 0
    assert fit(_program(7), Loader(), cross_entropy, settings, state_dir=tmp_path).resumed == 0


def test_a_damaged_state_is_not_continued(tmp_path: Path) -> None:
    program, settings = _program(), _settings(epochs=1)
    fit(program, Loader(), cross_entropy, settings, state_dir=tmp_path)
    file = tmp_path / "training.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert fit(program, Loader(), cross_entropy, settings, state_dir=tmp_path).resumed == 0


def test_training_leaves_its_input_and_the_callers_random_numbers_alone() -> None:
    program, teacher = _program().train(), _program(1).train()
    before = {n: t.clone() for n, t in _weights(program).items()}
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    fit(program, Loader(), cross_entropy, _settings(epochs=1), teacher=teacher)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(t, before[n]) for n, t in _weights(program).items())
    assert program.module().training and teacher.module().training


def test_training_learns_and_takes_the_latest_epoch_that_is_as_good_as_the_best() -> None:
    validation = Loader(shuffle=False)
    result = fit(_program(), Loader(), cross_entropy, _settings(epochs=12), validation=validation)
    metrics = [entry["metric"] for entry in result.history]
    assert max(metrics) > metrics[0] + 0.2
    (chosen,) = [entry for entry in result.history if entry.get("chosen")]
    found = evaluate(result.program, validation, top1)
    assert found.metric == pytest.approx(chosen["metric"])
    assert found.std_error == pytest.approx((found.metric * (1 - found.metric) / found.samples) ** 0.5)
    best = max(metrics)
    within = [e for e in result.history if e["metric"] >= best - (best * (1 - best) / found.samples) ** 0.5]
    assert chosen["epoch"] == within[-1]["epoch"]
    assert [entry["epoch"] for entry in result.history] == list(range(13))
    assert all(math.isfinite(entry["loss"]) for entry in result.history[1:])


def test_a_training_that_only_harms_gives_back_the_start() -> None:
    good = fit(_program(), Loader(), cross_entropy, _settings(epochs=12)).program

    def wrong(output: Tensor, target: Tensor) -> Tensor:
        return -F.cross_entropy(output, target).clamp_max(20.0)

    result = fit(good, Loader(), wrong, _settings(epochs=2), validation=Loader(shuffle=False))
    assert result.chosen.startswith("epoch 0 (the start)") and result.history[0]["chosen"]
    for name, tensor in _weights(good).items():
        assert torch.equal(tensor, _weights(result.program)[name])


def test_without_validation_the_last_epoch_is_taken_and_said() -> None:
    result = fit(_program(), Loader(), cross_entropy, _settings(epochs=2))
    assert result.chosen == "epoch 2, the last: there is no validation data"


@pytest.mark.parametrize(("changes", "steps"), [({"epochs": 1.5}, 9), ({"epochs": 0.1}, 1), ({"max_steps": 7}, 7)])
def test_fractions_of_epochs(changes: dict[str, Any], steps: int) -> None:
    seen: list[tuple[int, int, float]] = []

    def progress(done: int, total: int, **info: float) -> None:
        seen.append((done, total, info["lr"]))
        assert info["eta"] >= 0 and math.isfinite(info["loss"])

    settings = _settings(**changes)
    fit(_program(), Loader(), cross_entropy, settings, progress=progress)
    assert [done for done, _, _ in seen] == list(range(1, steps + 1))
    assert [lr for _, _, lr in seen] == [learning_rate(settings, s, steps, 6) for s in range(steps)]


def test_no_epochs_change_nothing() -> None:
    program = _program()
    result = fit(program, Loader(), cross_entropy, _settings(epochs=0))
    assert all(torch.equal(t, _weights(result.program)[n]) for n, t in _weights(program).items())


def test_a_step_is_that_of_plain_sgd() -> None:
    program, loader = _program(), Loader(shuffle=False)
    plain = program.clone().train().module()
    for module in (plain, program.module()):
        for child in module.modules():
            if isinstance(child, nn.Dropout):
                child.p = 0.0
    optimizer = make_optimizer(plain, _settings())
    for group in optimizer.param_groups:
        group["lr"] = 0.03
    for step, (x, y) in zip(range(3), loader, strict=False):
        optimizer.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        optimizer.step()
        assert step < 3
    settings = _settings(
        max_steps=3, schedule="constant", warmup_epochs=0, lr=0.03, precision="fp32", channels_last=False
    )
    result = fit(program, loader, cross_entropy, settings)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(_weights(result.program)[name], tensor, rtol=1e-5, atol=1e-6)


def test_biases_and_normalisation_do_not_decay() -> None:
    module = _program().module()
    groups = make_optimizer(module, _settings(weight_decay=0.1)).param_groups
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert {n for n, p in module.named_parameters() if id(p) in decayed} == {"0.weight", "4.weight", "8.weight"}
    assert sum(len(g["params"]) for g in groups) == len(list(module.parameters()))


def test_a_loss_that_is_not_finite_stops_with_a_hint() -> None:
    with pytest.raises(UserError) as error:
        fit(_program(), Loader(), cross_entropy, _settings(lr=1e18, clip_grad=None, precision="fp32", epochs=50))
    assert "step" in error.value.what and "lr" in error.value.hint


def test_an_empty_loader_is_named() -> None:
    with pytest.raises(UserError, match="no batch"):
        fit(_program(), [], cross_entropy, _settings())
    with pytest.raises(UserError, match="no batch"):
        evaluate(_program(), [], top1)


def test_labels_out_of_range_are_named() -> None:
    with pytest.raises(UserError, match="out of range"):
        fit(_program(), [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 4]))], cross_entropy, _settings())


@pytest.mark.parametrize(("label", "given"), [(4, "is 4"), (-1, "is -1")])
def test_an_evaluation_names_the_label_that_is_out_of_range(label: int, given: str) -> None:
    good = (torch.zeros(3, 3, 8, 8), torch.tensor([0, 1, 3]))
    loader = [good, (torch.zeros(3, 3, 8, 8), torch.tensor([0, label, 3]))]
    with pytest.raises(UserError) as caught:
        evaluate(_program(), loader, top1)
    assert "batch 1 of the loader" in caught.value.where
    assert f"target[1] of the batch {given}" in caught.value.why and "4 outputs (0 to 3)" in caught.value.why


def test_a_label_that_cross_entropy_ignores_is_no_mistake() -> None:
    target = torch.tensor([0, -100])
    assert torch.isfinite(cross_entropy(torch.eye(2), target)) and top1(torch.eye(2), target).tolist() == [1.0, 0.0]


def test_gradient_of_distillation() -> None:
    torch.manual_seed(0)
    student = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    teacher, t = torch.randn(5, 7), 3.0
    distillation_loss(student, teacher, t).backward()
    # d/ds of T² KL(p ‖ softmax(s / T)), averaged over the batch.
    wanted = t * (torch.softmax(student.detach() / t, 1) - torch.softmax(teacher / t, 1)) / 5
    assert student.grad is not None
    torch.testing.assert_close(student.grad, wanted.double(), rtol=1e-5, atol=1e-7)
    assert float(distillation_loss(teacher, teacher, t)) == pytest.approx(0.0, abs=1e-6)


def test_distillation_over_several_outputs_and_positions() -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 4, 5, 5)
    other = {"a": torch.randn(2, 3), "b": [torch.randn(2, 4, 5, 5)]}
    both = distillation_loss({"a": a, "b": [b]}, other, 2.0)
    single = [distillation_loss(a, other["a"], 2.0), distillation_loss(b, other["b"], 2.0)]
    torch.testing.assert_close(both, torch.stack(single).mean())
    flat = [t.permute(0, 2, 3, 1).reshape(-1, 4) for t in (b, other["b"][0])]
    torch.testing.assert_close(single[1], distillation_loss(*flat, 2.0))


@pytest.mark.parametrize(
    ("student", "teacher", "what"),
    [
        (torch.randn(5, 7), torch.randn(5, 8), "do not have the shape"),
        (torch.randn(5, 7), {"a": 1}, "do not have the shape"),
        (torch.randn(5, 1), torch.randn(5, 1), "no logits"),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(student: Tensor, teacher: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        distillation_loss(student, teacher, 2.0)


@pytest.mark.parametrize(
    ("output", "target", "axes"),
    [
        (torch.zeros(5, 3), torch.tensor([0, 2, 1, 1, -100]), [1]),
        (torch.zeros(5, 3), torch.tensor([0, 2, 1, 1, 3]), [None]),  # three outputs, and a count up to 3
        (torch.zeros(5, 3), torch.randn(5, 3), [None]),  # regression
        (torch.zeros(5, 3), torch.rand(5, 3).softmax(1), [1]),  # mixed labels
        (torch.zeros(5, 3), torch.eye(3)[[0, 1, 2, 0, 1]].long(), [1]),
        (torch.zeros(5, 3), torch.tensor([[True, False, True]] * 5), [None]),  # several labels a sample
        (torch.zeros(2, 4, 6, 6), torch.ones(2, 6, 6).long(), [1]),  # class maps
        (torch.zeros(2, 6, 4), torch.ones(2, 6).long(), [2]),  # tokens, classes last
        ({"a": torch.zeros(5, 3), "b": torch.zeros(5, 4)}, [torch.zeros(5).long(), torch.randn(5, 4)], [1, None]),
        (torch.zeros(5, 1), torch.zeros(5).long(), [None]),
        (torch.zeros(5, 3), None, [None]),
    ],
)
def test_targets_tell_which_outputs_are_classes(output: Any, target: Any, axes: list[int | None]) -> None:
    assert class_axes(output, target) == axes


def test_a_regression_is_not_distilled_and_says_so() -> None:
    """Values that went through a softmax would lose their scale: teacher or no teacher, the result is the same."""
    x = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = [(a, torch.stack([a.mean((1, 2, 3))] * 4, 1)) for a in x.split(16)]
    with_teacher, without = (
        fit(_program(), data, F.mse_loss, _settings(epochs=1, distill_weight=weight), teacher=_program(1))
        for weight in (0.9, 0.0)
    )
    assert all(torch.equal(t, _weights(without.program)[n]) for n, t in _weights(with_teacher.program).items())
    assert "not distilled" in with_teacher.chosen and with_teacher.history[1]["distilled"] is False
    assert "not distilled" not in without.chosen and "distilled" not in without.history[1]


def test_distillation_over_the_last_axis() -> None:
    a, b = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    expected = distillation_loss(a.transpose(1, 2), b.transpose(1, 2), 2.0)
    torch.testing.assert_close(distillation_loss(a, b, 2.0, [2]), expected)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "step"])
def test_schedules(schedule: str) -> None:
    settings = TrainSettings(lr=1.0, schedule=schedule, warmup_epochs=1.0)  # type: ignore[arg-type]
    rates = [learning_rate(settings, step, 110, 10) for step in range(110)]
    assert rates[:10] == [pytest.approx((i + 1) / 10) for i in range(10)]
    assert all(a >= b for a, b in pairwise(rates[9:]))
    middle = {"cosine": 0.5, "linear": 0.5, "constant": 1.0, "step": 0.1}[schedule]
    assert rates[60] == pytest.approx(middle)


def test_healing_records_what_it_did() -> None:
    validation = Loader(shuffle=False)
    result = heal(_program(), Loader(), teacher=_program(1), settings=_heal_settings(), validation=validation)
    first = result.history[0]
    assert set(result.starts) == set(first["metrics"]) == {"pruned", "batch norm re-estimated"}
    assert first["start"] == result.start == max(first["metrics"], key=first["metrics"].__getitem__)
    assert first["metric"] == evaluate(result.starts[result.start], validation, top1).metric
    assert not result.program.module().training


def test_healing_without_validation_starts_from_the_lowest_training_loss() -> None:
    result = heal(_program(), Loader(), settings=_heal_settings())
    losses = {n: evaluate(p, Loader(), top1, cross_entropy).loss for n, p in result.starts.items()}
    assert result.start == min(losses, key=lambda name: losses[name] or 0.0)


def test_candidates_are_judged_on_the_same_samples() -> None:
    program, reads = _program(), []

    class Counted(Loader):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            reads.append(1)
            return super().__iter__()

    choose({"a": program, "b": program}, Counted(), cross_entropy, validation=None, metric=top1, samples=64)
    assert len(reads) == 1


def test_evaluation_weighs_samples_not_batches() -> None:
    def network(x: Tensor) -> Tensor:
        return x

    logits, target = torch.eye(3)[[0, 1, 2, 0, 0]], torch.tensor([0, 1, 2, 1, 1])
    loader = [(logits[:3], target[:3]), (logits[3:], target[3:])]
    found = evaluate(network, loader, top1, cross_entropy)
    assert (found.metric, found.samples) == (pytest.approx(0.6), 5)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, target)))
