"""One product with the weights, against the whole Hessian; and SOSP, which adds the first order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_hessian import Dense, batches, data, flat, small_program
from torch import nn
from torch.func import functional_call

from secateur.compress.sensitivity.rank import rank
from secateur.passes.capture import capture

METHODS = {"oba": {}, "hap": {"deflate": 20}}


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


def partly_frozen():
    """One tensor makes units that can be removed, and outputs of the network, which cannot."""

    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.both, self.head = nn.Linear(4, 8), nn.Linear(5, 3)

        def forward(self, x):
            hidden, direct = self.both(x).split([5, 3], 1)
            return self.head(torch.tanh(hidden)) + direct

    torch.manual_seed(0)
    return capture(Direct().double().eval(), torch.randn(2, 4, dtype=torch.float64))


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


@pytest.mark.parametrize("build", [fused, partly_frozen])
@pytest.mark.parametrize(("method", "exact"), [("oba", oba), ("sosp", sosp)])
def test_tensors_that_several_groups_share(method, exact, build):
    program = build()
    x, y = data(shape=(4,))
    found = rank(program, batches(x, y, 12), F.cross_entropy, method=method)
    np.testing.assert_allclose(flat(found), exact(Dense(program, x, y)), rtol=1e-9, atol=1e-14)


def shared():
    """One layer used twice: its units are read where they are made."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.again, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = torch.tanh(self.again(torch.tanh(self.into(x))))
            return self.head(torch.tanh(self.again(x)))

    torch.manual_seed(0)
    return capture(Twice().double().eval(), torch.randn(2, 4, dtype=torch.float64))


def test_shared_weights():
    program, (x, y) = shared(), data(shape=(4,))
    dense = Dense(program, x, y)
    assert "again.weight" in dense.shapes
    for method, exact in (("oba", oba), ("sosp", sosp)):
        found = rank(program, batches(x, y, 12), F.cross_entropy, method=method)
        np.testing.assert_allclose(flat(found), exact(dense), rtol=1e-9, atol=1e-14)


def test_several_inputs_and_weights_in_the_target():
    """Inputs by name, of which one is a mask, and a target of labels and sample weights."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x, mask):
            return self.two(torch.tanh(self.one(x * mask)))

    def weighted(output, target):
        labels, weights = target
        return (F.cross_entropy(output, labels, reduction="none") * weights).mean()

    torch.manual_seed(0)
    x, y = data(shape=(4,))
    mask, weights = (torch.rand(12, 4) > 0.3).double(), torch.rand(12, dtype=torch.float64)
    program = capture(Masked().double().eval(), (), example_kwargs={"x": x[:2], "mask": mask[:2]})
    loader = [({"x": x[i : i + 4], "mask": mask[i : i + 4]}, (y[i : i + 4], weights[i : i + 4])) for i in (0, 4, 8)]
    found = {m: rank(program, loader, weighted, method=m, probes=2, **o) for m, o in METHODS.items()}

    module, first = program.graph_module, program.graph_module.get_parameter("one.weight")

    def loss(w):
        return weighted(functional_call(module, {"one.weight": w}, (), {"x": x, "mask": mask}), (y, weights))

    hessian = torch.autograd.functional.hessian(loss, first.detach()).reshape(20, 20)
    w = first.detach().flatten()
    np.testing.assert_allclose(flat(found["oba"]), (w * (hessian @ w)).reshape(5, 4).sum(1).numpy() / 2, rtol=1e-9)
    traces = hessian.diagonal().reshape(5, 4).mean(1) * w.reshape(5, 4).square().sum(1) / 2
    np.testing.assert_allclose(flat(found["hap"]), traces.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "options", [{"method": "oba"}, {"method": "hap", "deflate": 2}, {"method": "ehap", "stop": 0.9}]
)
def test_a_network_with_nothing_to_remove_has_no_scores(options):
    x, y = data(dtype=torch.float32, shape=(4,))
    program = capture(nn.Sequential(nn.Linear(4, 3)).eval(), x[:2])
    assert rank(program, batches(x, y, 12), F.cross_entropy, probes=9, **options).groups == {}


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


def test_weights_that_no_unit_owns_are_no_part_of_the_product():
    x, y = data(shape=(4,))
    program = partly_frozen()
    dense = Dense(program, x, y)
    kept = removable(dense)
    assert 0 < int((kept == 0).sum()) < len(kept), "the network has no frozen rows"
    whole = dense.per_unit(lambda slices: sum(slices) @ (dense.weights * (dense.hessian @ dense.weights)) / 2)
    assert not np.allclose(whole, flat(rank(program, batches(x, y, 12), F.cross_entropy, method="oba")))
