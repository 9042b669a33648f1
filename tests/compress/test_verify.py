"""A verification is the true rise of the loss, deterministic, and refuses what would say nothing."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import captured
from scipy.stats import spearmanr

from secateur.compress.heal.bn import reestimate_batch_norm
from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.table import Scores, Sensitivity
from secateur.compress.sensitivity.verify import Verification, rank_correlation, verify_ranking
from secateur.errors import UserError
from secateur.passes.prune import apply


@pytest.fixture(scope="module")
def program():
    return captured("resnet_a")


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(12, 3, 8, 8, generator=generator), torch.arange(12) % 3
    return [(x[:8], y[:8]), (x[8:], y[8:])]


@pytest.fixture(scope="module")
def table(program, data):
    return rank(program, data, F.cross_entropy, method="taylor")


def true_loss(program, data, reestimated):
    """By the physically smaller network, all samples at once."""
    if reestimated:
        program = reestimate_batch_norm(program, data, samples=12)
    x, y = (torch.cat(parts) for parts in zip(*data, strict=True))
    with torch.no_grad():
        return float(F.cross_entropy(program.eval().module()(x), y))


@pytest.mark.parametrize("batch_norm", ["kept", "reestimated"])
def test_the_rise_is_that_of_the_smaller_network(program, data, table, batch_norm):
    found = verify_ranking(program, table, data, F.cross_entropy, units=6, batch_norm=batch_norm)
    again = batch_norm == "reestimated"
    dense = true_loss(program, data, again)
    assert found.mean_loss == pytest.approx(dense, abs=1e-6)
    for name, unit, measured in zip(found.groups, found.units, found.measured, strict=True):
        keep = np.delete(np.arange(len(table.groups[name].delta_loss)), unit).tolist()
        assert measured == pytest.approx(true_loss(apply(program, {name: keep}), data, again) - dense, abs=2e-5)
    assert max(map(abs, found.measured)) > 1e-3 and found.facts["batch_norm"] == batch_norm
    assert found.predicted == [table.groups[n].delta_loss[u] for n, u in zip(found.groups, found.units, strict=True)]


def test_the_true_rises_agree_with_themselves_and_disagree_with_their_negative(program, data, table):
    first = verify_ranking(program, table, data, F.cross_entropy, units=10_000)
    assert len(first.units) == sum(len(scores.delta_loss) for scores in table.groups.values())

    def as_table(sign):
        groups = {name: [] for name in table.groups}
        for name, rise in zip(first.groups, first.measured, strict=True):
            groups[name].append(sign * rise)
        return Sensitivity("truth", "loss", {n: Scores(np.array(v), np.zeros(len(v))) for n, v in groups.items()})

    for sign in (1, -1):
        found = verify_ranking(program, as_table(sign), data, F.cross_entropy, units=20)
        assert found.spearman == pytest.approx(sign) and found.interval == pytest.approx((sign, sign))
        assert found.ratio == pytest.approx(sign)


def test_the_seed_decides_which_units(program, data, table):
    def drawn(seed):
        found = verify_ranking(program, table, data, F.cross_entropy, units=8, seed=seed)
        assert len(set(zip(found.groups, found.units, strict=True))) == 8
        return found.groups, found.units, found.measured, found.interval

    assert drawn(3) == drawn(3)
    assert drawn(3)[:2] != drawn(4)[:2]


def test_the_program_stays_as_it_was(program, data, table):
    before = {name: tensor.clone() for name, tensor in program.graph_module.state_dict().items()}
    verify_ranking(program, table, data, F.cross_entropy, units=5, batch_norm="reestimated")
    after = program.graph_module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_reads_the_samples_of_the_ranking(program, data, table):
    few = rank(program, data, F.cross_entropy, method="taylor", samples=5)
    assert verify_ranking(program, few, data, F.cross_entropy, units=5).facts["samples"] == 5
    assert verify_ranking(program, table, data, F.cross_entropy, units=5, samples=7).facts["samples"] == 7


def test_scores_have_no_ratio_and_come_back_from_their_file(program, data, table, tmp_path):
    found = verify_ranking(program, table, data, F.cross_entropy, units=5)
    assert found.unit == "score" and found.ratio is None
    found.save(tmp_path / "v.json")
    assert Verification.load(tmp_path / "v.json") == found


def test_the_correlation_is_that_of_scipy_with_ties():
    generator = np.random.default_rng(0)
    a = generator.normal(size=60).round(1)
    b = a + generator.normal(size=60).round(1)
    value, (low, high) = rank_correlation(a, b)
    assert value == pytest.approx(spearmanr(a, b).statistic)
    fisher = np.tanh(np.arctanh(value) + np.array([-1.96, 1.96]) * 1.06 / np.sqrt(57))
    assert (low, high) == pytest.approx(tuple(fisher), abs=0.08)


def test_a_constant_ranks_nothing(program, data, table):
    assert rank_correlation(np.ones(6), np.arange(6.0)) == (None, None)
    flat = Sensitivity(
        "flat", "loss", {n: Scores(np.ones_like(s.delta_loss), s.std_error) for n, s in table.groups.items()}
    )
    found = verify_ranking(program, flat, data, F.cross_entropy, units=5)
    assert found.spearman is None and json.loads(json.dumps(found.summary()))["interval"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 4}, "4 units are too few"),
        ({"units": 0}, "too few"),
        ({"units": True}, "too few"),
        ({"units": 7.5}, "too few"),
        ({"units": 5, "batch_norm": "fresh"}, "batch_norm cannot be"),
    ],
)
def test_what_would_say_nothing_is_refused(program, data, table, options, message):
    with pytest.raises(UserError, match=message):
        verify_ranking(program, table, data, F.cross_entropy, **options)


def test_a_network_without_units_is_refused(program, data):
    with pytest.raises(UserError, match="too little to verify") as caught:
        verify_ranking(program, Sensitivity("x", "loss", {}), data, F.cross_entropy, units=5)
    assert "frozen" in caught.value.hint


def test_a_table_of_another_program_is_refused(program, data, table):
    other = Sensitivity("x", "loss", {"nowhere": Scores(np.ones(8), np.zeros(8))})
    with pytest.raises(UserError, match="another program"):
        verify_ranking(program, other, data, F.cross_entropy, units=5)
    name = next(iter(table.groups))
    narrow = Sensitivity("x", "loss", {name: Scores(np.ones(2), np.zeros(2))})
    with pytest.raises(UserError, match="2 units have a score"):
        verify_ranking(program, narrow, data, F.cross_entropy, units=5)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "secateur-verification/1", "interval": null}'])
def test_what_is_no_verification_is_refused(tmp_path, text):
    (tmp_path / "v.json").write_text(text)
    with pytest.raises(UserError, match="not the verification of a ranking"):
        Verification.load(tmp_path / "v.json")
