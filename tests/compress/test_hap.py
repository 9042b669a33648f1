"""HAP's estimator against the full Hessian, computed by brute force in double precision."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_hessian import Dense, batches, data, flat, small_program
from torch import nn

from secateur.compress.sensitivity.rank import rank
from secateur.errors import UserError
from secateur.passes.capture import capture


@pytest.fixture(scope="module")
def small():
    return small_program()


def exact_terms(program, x, y):
    """½ Tr(H_pp)/|p| ‖w_p‖² by its definition, from the full Hessian: one list a unit, one term a producer."""
    dense = Dense(program, x, y)
    diagonal = dense.hessian.diagonal()
    terms = []
    for group in dense.groups:
        for unit in group.units:
            parts = [p.bool() for p in dense.slices(group, unit)]
            terms.append([float(diagonal[p].mean() * dense.weights[p].square().sum()) / 2 for p in parts])
    return terms


def exact_scores(program, x, y):
    """The sum of the terms of every unit, by group."""
    scores = np.array([sum(terms) for terms in exact_terms(program, x, y)])
    groups = [g for g in program.groups if g.frozen is None]
    ends = np.cumsum([g.width for g in groups])[:-1]
    return {g.name: part for g, part in zip(groups, np.split(scores, ends), strict=True)}


def table(program, x, y, size=12, **options):
    return rank(program, batches(x, y, size), F.cross_entropy, **{"method": "hap", **options})


def test_the_mean_over_probes_is_the_exact_trace(small):
    x, y = data()
    exact = exact_scores(small, x, y)
    found = table(small, x, y, probes=600)
    assert set(found.groups) == set(exact) and len(exact) >= 2
    for name, expected in exact.items():
        scores = found.groups[name]
        assert (np.abs(scores.delta_loss - expected) <= 4.5 * scores.std_error).all()
        # The standard error must be small enough for this to mean something.
        assert np.abs(expected).max() > 5 * scores.std_error.min()


def test_a_unit_of_a_grouped_convolution_is_one_slice():
    """A unit takes one channel of each of the two groups of the second convolution, and the trace is over both."""
    torch.manual_seed(0)
    body = [nn.Conv2d(2, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1, groups=2), nn.Tanh(), nn.Conv2d(4, 3, 5)]
    x, y = data()
    program = capture(nn.Sequential(*body, nn.Flatten()).double().eval(), x[:2])
    assert any(m.index.shape[1] == 2 for g in program.groups if g.frozen is None for m in g.producers)
    found = table(program, x, y, probes=1500)
    for name, expected in exact_scores(program, x, y).items():
        scores = found.groups[name]
        assert (np.abs(scores.delta_loss - expected) <= 4.5 * scores.std_error).all()
        assert np.abs(expected).max() > 7 * scores.std_error.min()


def test_the_standard_error_is_calibrated(small):
    x, y = data()
    exact = np.concatenate(list(exact_scores(small, x, y).values()))
    z = []
    for seed in range(12):
        found = table(small, x, y, probes=60, seed=seed)
        z.append((flat(found) - exact) / flat(found, "std_error"))
    assert 0.8 < np.sqrt(np.mean(np.square(z))) < 1.25


def test_a_diagonal_hessian_is_found_exactly_by_any_probe():
    """For a diagonal Hessian v∘Hv is its diagonal whatever the signs: ½ · 2 d_p / |I| · ‖w_p‖², without any error."""
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 8, bias=False)).double()
    with torch.no_grad():
        columns = torch.linalg.qr(torch.randn(8, 6, dtype=torch.float64))[0]
        lengths = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5, 0.1], dtype=torch.float64)
        model[1].weight.copy_(columns * lengths.sqrt())
    x = torch.eye(4, dtype=torch.float64)
    program = capture(model.eval(), x)
    found = rank(
        program,
        [(x, torch.zeros(4, 8, dtype=torch.float64))],
        lambda o, t: (o - t).square().sum(1).mean(),
        method="hap",
        probes=2,
    )
    (scores,) = found.groups.values()
    norms = model[0].weight.detach().square().sum(1)
    torch.testing.assert_close(torch.from_numpy(scores.delta_loss), lengths * norms / 4)
    assert (scores.std_error < 1e-12).all()


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(small):
    x, y = data()
    first, second = (table(small, x, y, size=5, probes=4, seed=3) for _ in range(2))
    assert flat(first).tobytes() == flat(second).tobytes()
    assert flat(first, "std_error").tobytes() == flat(second, "std_error").tobytes()
    assert not np.allclose(flat(first), flat(table(small, x, y, size=5, probes=4, seed=4)))


@pytest.mark.parametrize("size", [1, 5, 12])
def test_the_batch_size_of_the_loader_does_not_matter(small, size):
    x, y = data()
    whole, split = table(small, x, y, probes=3), table(small, x, y, size=size, probes=3)
    np.testing.assert_allclose(flat(split), flat(whole), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(flat(split, "std_error"), flat(whole, "std_error"), rtol=1e-7, atol=1e-12)
    assert split.facts["mean_loss"] == pytest.approx(whole.facts["mean_loss"])


def test_only_the_first_samples_are_read(small):
    x, y = data()
    some = table(small, x, y, size=5, probes=3, samples=7)
    np.testing.assert_allclose(flat(some), flat(table(small, x[:7], y[:7], probes=3)), rtol=1e-9, atol=1e-14)
    assert (some.facts["samples"], some.facts["batches"]) == (7, 2)


def close(found, exact, sigmas=4.5):
    """Whether estimates [units] agree with exact values within their standard errors, which mean something."""
    mean, error = flat(found), flat(found, "std_error")
    return (np.abs(mean - exact) <= sigmas * error + 1e-12).all() and np.abs(exact).max() > 5 * np.median(error)


@pytest.mark.parametrize("options", [{"layerwise": True}, {"deflate": 6}, {"deflate": 3, "layerwise": True}])
def test_variance_reduction_leaves_the_mean_right_and_cuts_the_error(small, options):
    x, y = data()
    exact = np.concatenate(list(exact_scores(small, x, y).values()))
    plain, reduced = table(small, x, y, probes=100), table(small, x, y, probes=100, **options)
    assert (np.abs(flat(plain) - exact) <= 4.5 * flat(plain, "std_error")).all() and close(reduced, exact)
    ratio = flat(reduced, "std_error") / flat(plain, "std_error")
    assert np.median(ratio) < 0.8
    name, value = next(iter(options.items()))
    assert reduced.facts[name] == value and reduced.facts["probes"] == 100


def test_taking_out_all_dimensions_leaves_nothing_to_chance():
    torch.manual_seed(0)
    program = capture(
        nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double().eval(), torch.zeros(2, 4).double()
    )
    x, y = data(shape=(4,))
    found = table(program, x, y, deflate=1000, probes=2)
    np.testing.assert_allclose(flat(found), np.concatenate(list(exact_scores(program, x, y).values())), rtol=1e-9)
    assert (flat(found, "std_error") < 1e-12).all()


def test_a_basis_that_is_no_eigenspace_is_as_good(small):
    """The identity behind deflation holds for any basis: for one drawn at random as well."""
    x, y = data()
    exact = np.concatenate(list(exact_scores(small, x, y).values()))
    found = [table(small, x, y, deflate=1, probes=40, seed=seed) for seed in range(6)]
    z = [(flat(f) - exact) / flat(f, "std_error") for f in found]
    assert 0.75 < np.sqrt(np.mean(np.square(z))) < 1.35


def test_deflation_does_not_depend_on_batches(small):
    x, y = data()
    whole, split = (table(small, x, y, size=size, probes=3, deflate=4) for size in (12, 5))
    np.testing.assert_allclose(flat(split), flat(whole), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(("option", "value"), [("deflate", -1), ("deflate", 2.5), ("tied", "mean")])
def test_options_out_of_range_are_named(small, option, value):
    with pytest.raises(UserError, match=f"{option} (must|cannot) be") as caught:
        table(small, *data(), probes=2, **{option: value})
    assert caught.value.where == f"rank.{option}"


def test_the_maximum_over_tied_layers(small):
    """HAP keeps a channel of a residual stream as long as one of its producers does: the maximum of their terms."""
    x, y = data()
    exact = np.array([max(terms) for terms in exact_terms(small, x, y)])
    assert close(table(small, x, y, probes=200, deflate=10, tied="max"), exact)
    assert not np.allclose(exact, [sum(terms) for terms in exact_terms(small, x, y)])


def test_absolute_values_are_of_every_layer_before_the_sum(small):
    for seed in range(50):
        x, y = data(seed=seed)
        terms = exact_terms(small, x, y)
        if any(min(t) < 0 < max(t) and min(np.abs(t)) > 0.1 * max(np.abs(t)) for t in terms):
            break
    else:
        pytest.fail("no data set with terms of both signs found")
    found = table(small, x, y, probes=200, deflate=20, absolute=True)
    assert close(found, np.array([np.abs(t).sum() for t in terms]))
    assert (flat(found) >= 0).all()


def test_negative_traces_stay_negative(small):
    """No clamp and no absolute value: the exact trace of some unit is negative, and so is the estimate."""
    for seed in range(20):
        x, y = data(seed=seed)
        exact = exact_scores(small, x, y)
        name, values = min(exact.items(), key=lambda item: item[1].min())
        if values.min() < -0.01 * np.abs(values).max():
            break
    else:
        pytest.fail("no data set with a negative trace found")
    scores = table(small, x, y, probes=600).groups[name]
    unit = int(values.argmin())
    assert abs(scores.delta_loss[unit] - values[unit]) <= 4.5 * scores.std_error[unit]
    assert (table(small, x, y, probes=2).groups[name].delta_loss < 0).any()


def test_nothing_is_left_changed(small):
    x, y = data()
    module = small.graph_module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        module.train()
        module.get_submodule("conv3").eval()
        module.get_parameter("fc.bias").requires_grad_(False)
        flags = [m.training for m in module.modules()], [p.requires_grad for p in module.parameters()]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            in_train_mode = table(small, x, y, probes=2)
        assert flags == ([m.training for m in module.modules()], [p.requires_grad for p in module.parameters()])
        assert all(p.grad is None for p in module.parameters())
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    finally:
        module.eval()
        module.requires_grad_(True)
    # Batch norm was in evaluation mode all along.
    assert flat(in_train_mode).tobytes() == flat(table(small, x, y, probes=2)).tobytes()


def test_it_works_inside_no_grad(small):
    x, y = data()
    with torch.no_grad():
        inside = table(small, x, y, probes=2)
    assert flat(inside).tobytes() == flat(table(small, x, y, probes=2)).tobytes()


def test_progress_counts_batches_times_probes(small):
    x, y = data()
    seen = []
    table(small, x, y, size=6, probes=3, progress=lambda done, total, **info: seen.append((done, total)))
    assert seen == [(i, 6) for i in range(1, 7)]


def test_progress_counts_deflation_and_stopping_as_well(small):
    x, y = data()
    seen = []

    def progress(done, total, **info):
        seen.append((done, total))

    table(small, x, y, size=6, probes=3, deflate=2, progress=progress)
    assert seen == [(i, 14) for i in range(1, 15)]
    seen.clear()
    table(small, x, y, size=6, probes=50, stop=0.81, progress=progress)
    assert seen == [(i, 100) for i in range(1, len(seen) + 1)] and len(seen) < 100


def test_the_facts_say_what_it_was_measured_on(small):
    x, y = data()
    found = table(small, x, y, probes=2, seed=9)
    assert found.method == "hap" and found.unit == "loss"
    assert found.facts["dtype"] == "float64" and found.facts["device"] == "cpu" and found.facts["seed"] == 9
    assert found.facts["mean_loss"] == pytest.approx(F.cross_entropy(small.graph_module(x), y).item())
    assert {"samples", "batches", "probes", "threads", "torch", "seconds"} <= set(found.facts)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v))
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x.mean(1))


def test_attention_has_second_derivatives():
    torch.manual_seed(0)
    x, y = data(6, shape=(4, 8), dtype=torch.float32)
    program = capture(Attention().eval(), x[:2])
    found = table(program, x, y, probes=3)
    assert np.abs(found.groups["up"].delta_loss).max() > 0
    assert "math kernel" in found.facts["attention"]
