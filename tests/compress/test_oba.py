"""One product with the weights, against the whole Hessian; and SOSP, which adds the first order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_hessian import Dense, batches, data, flat, small_program
from torch import nn

from secateur.compress.sensitivity.rank import rank
from secateur.passes.capture import capture


@pytest.fixture(scope="module")
def small():
    return small_program()


def fused():
    """Query, key and value in one tensor: a unit takes a row of each."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out, self.head = nn.Linear(4, 12), nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.head(torch.tanh(self.out(q * torch.sigmoid(k) + v)))

    torch.manual_seed(0)
    return capture(Heads().double().eval(), torch.randn(2, 4, dtype=torch.float64))


def removable(dense):
    """All weights that belong to a unit."""
    covered = sum(sum(dense.slices(g, u)) for g in dense.groups for u in g.units)
    return dense.weights * (covered > 0)


def oba(dense):
    share = dense.weights * (dense.hessian @ removable(dense)) / 2
    return dense.per_unit(lambda slices: sum(slices) @ share)


def sosp(dense):
    first = dense.weights * dense.gradient
    second = dense.weights * (dense.hessian @ removable(dense)) / 2
    return dense.per_unit(lambda slices: (sum(slices) @ first).abs() + (sum(slices) @ second).abs())


@pytest.mark.parametrize(("method", "exact"), [("oba", oba), ("sosp", sosp)])
def test_it_is_what_the_dense_hessian_says(small, method, exact):
    x, y = data()
    found = rank(small, batches(x, y, 12), F.cross_entropy, method=method)
    np.testing.assert_allclose(flat(found), exact(Dense(small, x, y)), rtol=1e-9, atol=1e-14)
    assert (flat(found, "std_error") == 0).all() and found.method == method and found.unit == "loss"


@pytest.mark.parametrize(("method", "exact"), [("oba", oba), ("sosp", sosp)])
def test_fused_weights(method, exact):
    program = fused()
    x, y = data(shape=(4,))
    found = rank(program, batches(x, y, 12), F.cross_entropy, method=method)
    np.testing.assert_allclose(flat(found), exact(Dense(program, x, y)), rtol=1e-9, atol=1e-14)


def test_all_shares_of_oba_make_up_the_second_order_term_of_removing_everything(small):
    x, y = data()
    dense = Dense(small, x, y)
    total = flat(rank(small, batches(x, y, 12), F.cross_entropy, method="oba")).sum()
    assert total == pytest.approx(float(dense.weights @ dense.hessian @ dense.weights) / 2)


def test_a_loss_linear_in_a_weight_still_has_a_first_order():
    """Output linear in the only weight that makes units, loss the mean output: no curvature, but a slope."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)).double().eval()
    x = torch.randn(5, 3, dtype=torch.float64)
    program = capture(model, x)
    first, last = model[0].weight.detach(), model[1].weight.detach()
    slope = last.sum(0) * (first @ x.mean(0))
    table = {m: rank(program, [(x, None)], lambda o, t: o.sum(1).mean(), method=m) for m in ("oba", "sosp")}
    np.testing.assert_allclose(flat(table["sosp"]), slope.abs().numpy())
    assert (flat(table["oba"]) == 0).all()


@pytest.mark.parametrize("method", ["oba", "sosp"])
def test_batches_do_not_matter_but_for_the_standard_error(small, method):
    x, y = data()
    whole = rank(small, batches(x, y, 12), F.cross_entropy, method=method)
    split = rank(small, batches(x, y, 5), F.cross_entropy, method=method)
    np.testing.assert_allclose(flat(split), flat(whole), rtol=1e-9, atol=1e-13)
    assert (flat(split, "std_error") > 0).all() and split.facts["batches"] == 3
    assert split.facts["mean_loss"] == pytest.approx(whole.facts["mean_loss"])


def test_the_standard_error_is_that_of_a_mean_over_batches(small):
    x, y = data()
    found = rank(small, batches(x, y, 4), F.cross_entropy, method="oba")
    single = [
        flat(rank(small, batches(x[i : i + 4], y[i : i + 4], 4), F.cross_entropy, method="oba")) for i in (0, 4, 8)
    ]
    np.testing.assert_allclose(flat(found, "std_error"), np.std(single, 0, ddof=1) / np.sqrt(3), rtol=1e-8)


def test_the_standard_error_of_sosp_follows_its_signs(small):
    x, y = data()
    found = rank(small, batches(x, y, 6), F.cross_entropy, method="sosp")
    halves = [Dense(small, x[i : i + 6], y[i : i + 6]) for i in (0, 6)]
    slope = [d.per_unit(lambda s, d=d: sum(s) @ (d.weights * d.gradient)) for d in halves]
    curvature = [oba(d) for d in halves]
    signed = [
        np.sign(np.mean(slope, 0)) * a + np.sign(np.mean(curvature, 0)) * b
        for a, b in zip(slope, curvature, strict=True)
    ]
    np.testing.assert_allclose(flat(found), np.mean(signed, 0), rtol=1e-9)
    np.testing.assert_allclose(flat(found, "std_error"), np.std(signed, 0, ddof=1) / np.sqrt(2), rtol=1e-8)
