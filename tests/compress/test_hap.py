"""HAP's estimator against the full Hessian, computed by brute force in double precision."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from secateur.compress.sensitivity.rank import rank
from secateur.passes.capture import capture


class Small(nn.Module):
    """Two residually tied convolutions (one group), a third one, smooth activations."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 1)
        self.conv3 = nn.Conv2d(4, 3, 3)
        self.fc = nn.Linear(3, 3)

    def forward(self, x):
        x = F.gelu(self.bn1(self.conv1(x)))
        x = x + self.conv2(x)
        return self.fc(torch.tanh(self.conv3(F.gelu(x))).mean((2, 3)))


def data(n=12, seed=0, dtype=torch.float64, classes=3, shape=(2, 5, 5)):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model = Small().double()
    with torch.no_grad():
        model(3 * torch.randn(64, 2, 5, 5, dtype=torch.float64) + 1)
    x, _ = data()
    return capture(model.eval(), x[:2])


def exact_scores(program, x, y):
    """½ Tr(H_pp)/|p| ‖w_p‖² by its definition, one unit at a time, from the full Hessian of each weight."""
    module = program.graph_module.eval()
    scores = {}
    for group in program.groups:
        if group.frozen is not None:
            continue
        total = np.zeros(group.width)
        for member in group.producers:
            weight = module.get_parameter(member.tensor).detach()

            def loss(w, name=member.tensor):
                return F.cross_entropy(functional_call(module, {name: w}, (x,)), y)

            hessian = torch.autograd.functional.hessian(loss, weight)
            diagonal = hessian.reshape(weight.numel(), -1).diagonal().reshape(weight.shape)
            for unit in range(group.width):
                index = torch.as_tensor(member.index[unit])
                trace = diagonal.index_select(member.axis, index).sum()
                part = weight.index_select(member.axis, index)
                total[unit] += 0.5 * float(trace) / part.numel() * float(part.square().sum())
        scores[group.name] = total
    return scores


def table(program, x, y, size=12, **options):
    return rank(program, batches(x, y, size), F.cross_entropy, **options)


def flat(sensitivity, part="delta_loss"):
    return np.concatenate([getattr(scores, part) for scores in sensitivity.groups.values()])


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
        program, [(x, torch.zeros(4, 8, dtype=torch.float64))], lambda o, t: (o - t).square().sum(1).mean(), probes=2
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
