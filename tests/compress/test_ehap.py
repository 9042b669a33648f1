"""EHAP: close to HAP on the same probes, and a scaling scheme that survives overflow."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_hessian import batches, data, flat, small_program
from scipy.stats import spearmanr
from torch import nn

from secateur.compress.sensitivity.batches import read_batches
from secateur.compress.sensitivity.ehap import HalfPrecision, half_type
from secateur.compress.sensitivity.hap import Reading, _factors
from secateur.compress.sensitivity.hessian import FullPrecision, Hessian
from secateur.compress.sensitivity.hvp import differentiable, producing_weights
from secateur.compress.sensitivity.probes import hutchinson, signs
from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.request import Request
from secateur.compress.sensitivity.scaling import finite_at
from secateur.compress.sensitivity.stopping import Rule
from secateur.errors import EnvironmentLacksError, ExitCode, UserError
from secateur.passes.capture import capture

CPU = torch.device("cpu")


def net():
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GELU(), nn.Conv2d(16, 24, 3), nn.GELU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(24 * 9, 3)).eval()


@pytest.fixture(scope="module")
def program():
    return capture(net(), data(2, dtype=torch.float32)[0])


def table(program, method="ehap", size=16, **options):
    x, y = data(16, dtype=torch.float32)
    return rank(program, batches(x, y, size), F.cross_entropy, method=method, **{"probes": 8, **options})


def test_bf16_is_close_to_full_precision_on_the_same_probes(program):
    half, full = table(program), table(program, "hap")
    difference = np.linalg.norm(flat(half) - flat(full)) / np.linalg.norm(flat(full))
    assert 0 < difference < 0.05
    assert spearmanr(flat(half), flat(full)).statistic > 0.99
    assert half.facts["precision"] == "bfloat16" and half.facts["retried"] == 0 and half.facts["dtype"] == "float32"
    assert half.facts["probes"] == 8


def test_batches_and_layers_make_no_more_difference_than_rounding(program):
    whole = flat(table(program))
    assert spearmanr(whole, flat(table(program, size=4))).statistic > 0.99
    layerwise = {m: flat(table(program, m, layerwise=True)) for m in ("hap", "ehap")}
    assert spearmanr(layerwise["hap"], layerwise["ehap"]).statistic > 0.99


def rows(program, probes):
    """HAP's traces of every probe [probes, columns] in BF16, and the weights they are of."""
    x, y = data(16, dtype=torch.float32)
    request = Request(program, batches(x, y, 16), F.cross_entropy, 0, 16, probes)
    weights = producing_weights(request)
    rule = Rule(lambda traces: (traces.mean(0), traces.std(0)))
    hessian = Hessian(request, weights, HalfPrecision(torch.bfloat16), products=probes)
    return hutchinson(hessian, rule, probes=probes, seed=0), weights


def test_the_published_weighting_is_that_of_a_scale_never_divided_out(program):
    """The code multiplies probe k's product by 2^(8-8k) of its gradient scaler and sums; ranks are those of the sum."""
    traces, weights = rows(program, 6)
    published = flat(table(program, published=True, probes=6))
    scales = 2.0 ** (8 - 8 * np.arange(6))
    summed = Reading().combine(weights, _factors(weights), (scales @ traces)[None].repeat(2, 0))[0]
    np.testing.assert_allclose(published * scales.sum(), summed, rtol=1e-9)
    first = Reading().combine(weights, _factors(weights), traces[:1].repeat(2, 0))[0]
    assert np.linalg.norm(published - first) < 0.02 * np.linalg.norm(first)
    assert np.linalg.norm(flat(table(program, probes=6)) - first) > 0.1 * np.linalg.norm(first)


def test_the_published_weighting_has_the_standard_error_of_one_probe(program):
    ours, theirs = table(program, probes=16), table(program, probes=16, published=True)
    ratio = flat(theirs, "std_error") / flat(ours, "std_error")
    np.testing.assert_allclose(ratio, 4 * np.sqrt(1 - 2.0**-8) / np.sqrt(1 + 2.0**-8), rtol=1e-6)
    with pytest.raises(UserError, match="published and stop"):
        table(program, published=True, stop=0.9)


def overflowing(limit):
    """Values proportional to the scale until they pass `limit`, as in FP16."""
    seen = []

    def compute(scale):
        seen.append(scale)
        values = torch.tensor([1.0, -3.0, 0.25]) * scale
        return [torch.where(values.abs() > limit, torch.inf * values.sign(), values), None]

    return compute, seen


@pytest.mark.parametrize(("limit", "retried"), [(2.0**20, 0), (2.0**16, 2), (10.0, 15)])
def test_what_overflows_is_computed_again_at_half_the_scale(limit, retried):
    compute, seen = overflowing(limit)
    result = finite_at(compute, 2.0**16)
    assert (result.retried, result.scale) == (retried, 2.0 ** (16 - retried))
    assert seen == [2.0 ** (16 - k) for k in range(retried + 1)]
    (values,) = result.unscaled()
    assert values.tolist() == [1.0, -3.0, 0.25] and values.dtype == torch.float32
    assert result.unscaled(2.0)[0].tolist() == [0.5, -1.5, 0.125]


def test_it_divides_in_single_precision():
    """1e-6 times a scale of 2^10 is an FP16 number; 1e-6 itself is one of few bits, and 1e-9 is zero."""
    result = finite_at(lambda scale: [torch.tensor([1e-6, 1e-9]).mul(scale).half()], 2.0**16)
    np.testing.assert_allclose(result.unscaled()[0].numpy(), [1e-6, 1e-9], rtol=1e-3)


def test_it_gives_up_in_the_end():
    compute, seen = overflowing(0.0)
    with pytest.raises(UserError, match="overflows in half precision"):
        finite_at(compute, 1.0, retries=5)
    assert len(seen) == 6


def one_product(program, arithmetic, factor=1.0):
    x, y = data(16, dtype=torch.float32)
    request = Request(program, batches(x, y, 16), lambda o, t: factor * F.cross_entropy(o, t))
    weights = producing_weights(request)
    (batch,) = read_batches(request.loader, 16, program, CPU)
    with differentiable(program.graph_module, weights.tensors):
        loss, gradient = arithmetic.gradients(request, batch, weights.tensors)
        found = arithmetic.product(gradient, weights.tensors, signs(weights.tensors, 0, 0))
    return loss, torch.cat([h.flatten() for h in found])


@pytest.mark.parametrize("factor", [1.0, 1000.0])
def test_fp16_products_are_right_whatever_overflows(program, factor):
    """Slow on a CPU, but the same arithmetic as on a GPU; a large loss overflows at the first scales."""
    half = HalfPrecision(torch.float16)
    loss, found = one_product(program, half, factor)
    expected_loss, expected = one_product(program, FullPrecision(), factor)
    assert loss == pytest.approx(expected_loss, rel=0.01)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.02 * expected.norm()
    assert (half.retried > 0) == (factor > 1)
    assert half.facts(CPU) == {
        "retried": half.retried,
        "loss_scale": half.loss_scale,
        "probe_scale": half.probe_scale,
    }
    before = half.retried
    one_product(program, half, factor)
    assert half.retried == before, "a scale that overflowed was tried again"


@pytest.mark.parametrize(("precision", "device"), [("fp16", "cpu"), ("bf16", "meta"), ("auto", "meta")])
def test_a_precision_that_the_device_lacks_is_refused(precision, device):
    with pytest.raises(EnvironmentLacksError) as caught:
        half_type(precision, torch.device(device))
    assert caught.value.code == ExitCode.ENVIRONMENT and caught.value.hint


def test_fp16_on_a_cpu_is_refused_by_rank(program):
    assert half_type("auto", CPU) == torch.bfloat16
    with pytest.raises(EnvironmentLacksError, match="no FP16 on a CPU"):
        table(program, precision="fp16")


def test_double_precision_is_refused():
    x, y = data()
    with pytest.raises(UserError, match="double precision"):
        rank(small_program(), batches(x, y, 12), F.cross_entropy, method="ehap", probes=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_on_a_gpu(precision):
    program = capture(net().cuda(), data(2, dtype=torch.float32)[0].cuda())
    half, full = table(program, precision=precision), table(program, "hap")
    assert spearmanr(flat(half), flat(full)).statistic > 0.99
    assert half.facts["precision"] == {"fp16": "float16", "bf16": "bfloat16"}[precision]
