"""The stopping rule: as certain as it says, whatever the signs, and the same decision everywhere."""

import numpy as np
import pytest
import torch.nn.functional as F
from dense_hessian import batches, data, flat, small_program
from scipy.stats import norm

from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.stopping import LEAST, Rule, misplaced_share
from secateur.errors import UserError


def mean_and_error(values):
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def run(truth, spread, stop, keep, seed, most=3000):
    """Probes one simulated network until the rule stops; probes used, and predicted and true share misplaced."""
    values = truth + spread * np.random.default_rng(seed).standard_normal((most, len(truth)))
    rule = Rule(mean_and_error, stop, keep)
    used = next(end for end in rule.rounds(most) if end == most or rule.enough(values[:end]))
    kept = round(keep * len(truth))
    wrong = set(np.argsort(-values[:used].mean(0))[:kept]) - set(np.argsort(-truth)[:kept])
    return used, rule.misplaced(values[:used]), 2 * len(wrong) / len(truth)


def truths():
    generator = np.random.default_rng(0)
    signs = generator.choice([1, 1, 1, -1], 300)
    return {
        "normal": generator.normal(size=300),
        "heavy tail": generator.lognormal(0, 1.5, 300),
        "signed": generator.lognormal(0, 1.5, 300) * signs,
    }


@pytest.mark.parametrize("name", ["normal", "heavy tail", "signed"])
@pytest.mark.parametrize("spread", ["equal", "proportional"])
@pytest.mark.parametrize(("stop", "keep"), [(0.95, 0.5), (0.9, 0.5), (0.95, 0.3)])
def test_the_share_misplaced_is_what_was_asked(name, spread, stop, keep):
    truth = truths()[name]
    noise = np.full(300, 2.0) if spread == "equal" else 2.5 * np.abs(truth) + 0.1
    runs = np.array([run(truth, noise, stop, keep, seed) for seed in range(8)])
    used, _, actual = runs.mean(0)
    assert LEAST < used < 3000, "the test decides nothing"
    assert (runs[:, 1] <= 1 - stop).all()
    assert actual <= 1.25 * (1 - stop)


def test_it_never_stops_on_noise():
    for seed in range(20):
        used, predicted, _ = run(np.zeros(300), np.ones(300), 0.85, 0.5, seed, most=500)
        assert used == 500 and predicted == pytest.approx(0.25, abs=0.03)


def test_signs_and_offsets_change_nothing():
    """A tolerance relative to a signed mean is met at once by a negative one (a bug that HAWQ's traces had in NNCF)."""
    truth = truths()["normal"]
    plain = run(truth, np.full(300, 2.0), 0.95, 0.5, 1)
    for factor, offset in ((1.0, -50.0), (1.0, 50.0), (3.0, 0.0)):
        moved = run(truth * factor + offset, np.full(300, 2.0 * factor), 0.95, 0.5, 1)
        assert moved[0] == plain[0] and moved[1:] == pytest.approx(plain[1:])
    error = np.linspace(0.1, 1, 300)
    assert misplaced_share(-truth, error, 0.3, 10) == pytest.approx(misplaced_share(truth, error, 0.7, 10))


def test_the_share_is_the_mean_probability_of_the_wrong_side():
    mean, error = np.array([-3.0, 0.0, 1.0, 5.0]), np.array([1.0, 2.0, 0.5, 0.0])
    expected = norm.sf([3.5 / 1, 0.5 / 2, 0.5 / 0.5, np.inf]).mean()
    assert misplaced_share(mean, error, 0.5, 10**9) == pytest.approx(expected)
    assert misplaced_share(mean, error, 0.5, 3) > expected, "few probes make standard errors uncertain"
    # The two that are kept are those above: with three kept, the threshold lies between -3 and 0.
    assert misplaced_share(mean, error, 0.75, 10**9) == pytest.approx(norm.sf([1.5, 0.75, 5.0, np.inf]).mean())


@pytest.mark.parametrize(
    ("mean", "keep", "expected"),
    [([1.0, 2.0], 0.9, 0.0), ([], 0.5, 0.0), ([1.0, 1.0], 0.5, 0.5), ([1.0, 2.0], 0.5, 0.0)],
)
def test_exact_estimates(mean, keep, expected):
    """Without error a unit is misplaced only if it ties with the threshold; with nothing to choose, none is."""
    assert misplaced_share(np.array(mean), np.zeros(len(mean)), keep, 10) == expected


def test_rounds_grow_and_end_at_the_bound():
    assert list(Rule(mean_and_error, 0.9).rounds(60)) == [8, 12, 18, 27, 40, 60]
    assert list(Rule(mean_and_error, 0.9).rounds(5)) == [5]
    assert list(Rule(mean_and_error).rounds(60)) == [60]


def test_too_few_probes_decide_nothing():
    values = np.arange(10.0) + np.zeros((LEAST, 1))
    assert Rule(mean_and_error, 0.9).enough(values)
    assert not Rule(mean_and_error, 0.9).enough(values[:-1])
    assert not Rule(mean_and_error).enough(values)


@pytest.mark.parametrize(
    "options",
    [{"stop": 0.8}, {"stop": 1.0}, {"stop": 95}, {"keep": 0.0}, {"keep": 1}],
)
def test_values_out_of_range_are_named(options):
    program, (x, y) = small_program(), data()
    (name,) = options
    with pytest.raises(UserError, match=f"{name} must be a share") as caught:
        rank(program, batches(x, y, 12), F.cross_entropy, method="hap", probes=2, **options)
    assert caught.value.where == f"rank.{name}"


def test_hap_stops_and_says_how_sure_it_is():
    program, (x, y) = small_program(), data()
    stopped = rank(program, batches(x, y, 5), F.cross_entropy, method="hap", probes=2000, stop=0.85)
    used = stopped.facts["probes"]
    assert LEAST <= used < 2000 and stopped.facts["most_probes"] == 2000
    assert 0 < stopped.facts["misplaced"] <= 0.15 and stopped.facts["keep"] == 0.5
    # The same as that many probes from the start.
    same = rank(program, batches(x, y, 5), F.cross_entropy, method="hap", probes=used)
    np.testing.assert_allclose(flat(same), flat(stopped), rtol=1e-12)
    np.testing.assert_allclose(flat(same, "std_error"), flat(stopped, "std_error"), rtol=1e-12)
    assert same.facts["misplaced"] == pytest.approx(stopped.facts["misplaced"])
    bounded = rank(program, batches(x, y, 5), F.cross_entropy, method="hap", probes=9, stop=0.999)
    assert bounded.facts["probes"] == 9 and bounded.facts["misplaced"] > 0.001
