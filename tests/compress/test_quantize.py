"""Calibration and quantisation: oracles on ranges, and training on the grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import NETS, captured, rebatch
from torch import Tensor, nn

from secateur.compress.calibrate import calibrate
from secateur.compress.heal.evaluate import cross_entropy, evaluate, top1
from secateur.compress.heal.settings import TrainSettings
from secateur.compress.observe import BINS, OBSERVERS, Histogram, squared_error
from secateur.compress.quantize import prepare, quantize
from secateur.errors import UnsupportedError, UserError
from secateur.passes.capture import capture
from secateur.passes.program import Program
from secateur.passes.quant.grid import Grid, QuantScheme
from secateur.passes.quant.modules import FakeQuantize, QuantConv2d

SCHEME = QuantScheme()
U8 = SCHEME.activation
U3 = Grid(bits=3, signed=False, symmetric=False)


def _batches(samples: int = 96, batch: int = 32) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(5))
    y = (x[:, 0].mean((1, 2)) > 0).long() + 2 * (x[:, 1].mean((1, 2)) > 0).long()
    return list(zip(x.split(batch), y.split(batch), strict=True))


def _quantizers(program: Program) -> dict[str, FakeQuantize]:
    return {n: m for n, m in program.module().named_modules() if isinstance(m, FakeQuantize)}


def _observed(kind: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(20_000, generator=generator)
    if kind == "relu":
        return x.clamp_min(0)
    if kind == "outliers":
        x[:5] *= 40
    return x + 0.3 if kind == "shifted" else x


def test_histogram_counts_every_value_near_its_place() -> None:
    batches = [torch.randn(5000) * scale for scale in (0.1, 3.0, 1.0, 7.0)]
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    values = torch.cat(batches)
    assert histogram.counts.sum() == len(values)
    assert (histogram.low, histogram.high) == (pytest.approx(float(values.min())), pytest.approx(float(values.max())))
    # Old counts move by at most half a bin at each of three widenings.
    width = (histogram.high - histogram.low) / BINS
    for point in np.linspace(-5, 5, 11):
        below = histogram.counts[histogram.centers < point].sum()
        slack = [int((values < point + shift * 4 * width).sum()) for shift in (-1, 1)]
        assert slack[0] <= below <= slack[1]


@pytest.mark.parametrize("kind", ["normal", "relu", "outliers", "shifted"])
@pytest.mark.parametrize("grid", [U8, U3, Grid(narrow=True), Grid(bits=4, signed=False, symmetric=True)])
def test_mse_is_never_worse_than_minmax(kind: str, grid: Grid) -> None:
    values = _observed(kind, 0)
    histogram = Histogram()
    for part in values.split(3000):
        histogram.add(part)
    non_negative = kind == "relu"
    errors, measured = {}, {}
    for name, observer in OBSERVERS.items():
        covered = observer(histogram, grid, non_negative=non_negative)
        errors[name] = squared_error(histogram, grid, covered, non_negative=non_negative)
        quantizer = FakeQuantize(grid, non_negative=non_negative)
        quantizer.set_range(covered.low, covered.high)
        measured[name] = float((quantizer(values) - values).square().mean())
    assert errors["mse"] <= min(errors.values())
    assert measured["mse"] <= measured["minmax"] * 1.02
    if kind == "outliers":
        # Few codes, long range: cutting outliers pays (at 8 bits the clipped ones weigh as much as they save).
        assert errors["mse"] < (0.9 if grid.bits < 8 else 1.0) * errors["minmax"]


def test_squared_error_is_that_of_the_values() -> None:
    values = _observed("normal", 1)
    histogram = Histogram()
    histogram.add(values)
    covered = OBSERVERS["minmax"](histogram, U3)
    quantizer = FakeQuantize(U3)
    quantizer.set_range(covered.low, covered.high)
    measured = float((quantizer(values) - values).square().mean())
    assert squared_error(histogram, U3, covered) == pytest.approx(measured, rel=0.01)


def test_percentile_leaves_out_the_outliers() -> None:
    values = torch.linspace(0, 1, 100_000)
    values[-3:] = 50.0
    histogram = Histogram()
    histogram.add(values)
    assert OBSERVERS["percentile"](histogram, U8).high == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("name", ["resnet_a", "resnet_b"])
def test_minmax_calibration_against_brute_force(name: str) -> None:
    prepared, _ = prepare(captured(name), SCHEME)
    batches = _batches()
    calibrated = calibrate(prepared, batches, observer="minmax", samples=96)
    assert not any(q.calibrated for q in _quantizers(prepared).values())
    seen: dict[str, list[Tensor]] = {}
    probe = prepared.clone()
    for path, quantizer in _quantizers(probe).items():
        quantizer.enabled = False
        quantizer.register_forward_hook(lambda _, x, __, path=path: seen.setdefault(path, []).append(x[0]))
    with torch.no_grad():
        for x, _ in batches:
            probe.module()(x)
    for path, quantizer in _quantizers(calibrated).items():
        values = torch.cat([v.flatten() for v in seen[path]])
        low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
        assert float(quantizer.scale) == pytest.approx((high - low) / 255, rel=1e-5)
        assert int(quantizer.zero_point) == round(-low * 255 / (high - low))


def test_only_as_many_samples_as_asked_for_are_read() -> None:
    read: list[int] = []
    told: list[tuple[int, int]] = []

    def loader():
        for batch in _batches():
            read.append(1)
            yield batch

    prepared, _ = prepare(captured("plain"), SCHEME)
    calibrate(prepared, loader(), samples=40, progress=lambda done, total: told.append((done, total)))
    assert len(read) == 2 and told == [(32, 40), (40, 40)]


@pytest.mark.parametrize("observer", sorted(OBSERVERS))
@pytest.mark.parametrize("name", ["resnet_a", "preact", "mobilenet", "densenet", "plain", "conv1d", "keyword_input"])
def test_eight_bits_stay_close_to_float(name: str, observer: str) -> None:
    module, inputs = NETS[name]()
    program = capture(module, inputs)
    batches = [(rebatch(inputs, 16, seed=s), torch.zeros(16)) for s in range(4)]
    result = quantize(program, batches, scheme=SCHEME, observer=observer)
    args, kwargs = ((), rebatch(inputs, 32, seed=9)) if isinstance(inputs, dict) else (rebatch(inputs, 32, seed=9), {})
    with torch.no_grad():
        outputs = [p.module()(*args, **kwargs) for p in (program, result.program)]
    exact, rounded = (o["logits"] if isinstance(o, dict) else o for o in outputs)
    error = float((exact - rounded).norm() / exact.norm())
    assert 0 < error < 0.03, error


def test_activations_lie_on_their_grid() -> None:
    result = quantize(captured("preact"), _batches(), scheme=SCHEME)
    checked = []

    def check(quantizer: FakeQuantize, inputs: tuple[Tensor], output: Tensor) -> None:
        codes = quantizer.codes(inputs[0])
        assert int(codes.min()) >= 0 and int(codes.max()) <= 255
        assert torch.equal((codes - quantizer.zero_point).float() * quantizer.scale, output)
        checked.append(1)

    for quantizer in _quantizers(result.program).values():
        quantizer.register_forward_hook(check)
    result.program.run_example()
    assert len(checked) >= 16


def test_training_on_the_grid_lowers_the_loss_and_keeps_the_ranges(tmp_path: Path) -> None:
    coarse = QuantScheme(weight=Grid(bits=3, narrow=True), activation=U3)
    program, batches = captured("resnet_b"), _batches()
    settings = TrainSettings(epochs=12, lr=0.05, distill_weight=0.0)
    result = quantize(program, batches, scheme=coarse, qat=settings, validation=batches, state_dir=tmp_path)
    before = evaluate(result.calibrated, batches, top1, cross_entropy)
    after = evaluate(result.program, batches, top1, cross_entropy)
    assert before.loss is not None and after.loss is not None
    assert after.loss < 0.7 * before.loss
    assert result.history[0]["metric"] == before.metric and "metric_float" in result.history[0]
    for name, quantizer in _quantizers(result.program).items():
        assert torch.equal(quantizer.scale, _quantizers(result.calibrated)[name].scale)
    for layer in result.program.module().modules():
        if isinstance(layer, QuantConv2d):
            codes, scales = layer.integer_weight()
            assert torch.equal(codes.float() * scales.reshape(-1, 1, 1, 1), layer.quantized_weight())
            assert int(codes.abs().max()) == 3


def test_the_float_program_teaches_unless_another_does() -> None:
    program, batches = captured("resnet_b"), _batches()
    coarse = QuantScheme(weight=Grid(bits=3, narrow=True), activation=U3)
    settings = TrainSettings(epochs=4, lr=0.01, distill_weight=1.0, temperature=1.0)

    def gap(quantized: Program) -> float:
        with torch.no_grad():
            ours, theirs = (p.module()(batches[0][0]) for p in (quantized, program))
        return float(nn.functional.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean"))

    result = quantize(program, batches, scheme=coarse, qat=settings)
    assert gap(result.program) < 0.7 * gap(result.calibrated)


def test_training_is_left_out_where_calibration_is_good_enough() -> None:
    program, batches = captured("resnet_b"), _batches()
    settings = TrainSettings(epochs=1)
    lax = quantize(program, batches, scheme=SCHEME, qat=settings, validation=batches, tolerance=100.0)
    assert len(lax.history) == 1 and lax.chosen.startswith("calibrated:")
    strict = quantize(program, batches, scheme=SCHEME, qat=settings, validation=batches, tolerance=-101.0)
    assert len(strict.history) == 2
    with pytest.raises(UserError, match="validation"):
        quantize(program, batches, scheme=SCHEME, qat=settings, tolerance=0.1)


def test_journal_names_what_stays_float() -> None:
    result = quantize(captured("resnet_b"), _batches(), scheme=SCHEME)
    assert [name for name, _ in result.journal] == ["linear"]
    assert result.chosen == "calibrated"


def test_bad_input_is_named() -> None:
    program = captured("plain")
    with pytest.raises(UserError, match="no batch"):
        quantize(program, [], scheme=SCHEME)
    with pytest.raises(UserError, match="observer"):
        quantize(program, _batches(), scheme=SCHEME, observer="entropy")
    x, y = _batches()[0]
    with pytest.raises(UserError, match="not finite"):
        quantize(program, [(x * float("nan"), y)], scheme=SCHEME)
    no_layers = capture(nn.Sequential(nn.ReLU(), nn.Flatten()).eval(), torch.zeros(2, 3, 8, 8))
    with pytest.raises(UnsupportedError, match="no layer"):
        quantize(no_layers, _batches(), scheme=SCHEME)


def test_a_quantised_program_survives_saving(tmp_path: Path) -> None:
    result = quantize(captured("resnet_a"), _batches(), scheme=SCHEME)
    result.program.save(tmp_path)
    loaded = Program.load(tmp_path).eval()
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.module()(x), result.program.module()(x))
    before, after = (_quantizers(p) for p in (result.program, loaded))
    assert {n: (float(q.scale), int(q.zero_point)) for n, q in before.items()} == {
        n: (float(q.scale), int(q.zero_point)) for n, q in after.items()
    }
