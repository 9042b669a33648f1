"""The benchmark of rankings: removals against physically smaller networks, statistics against known values."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from secateur.api import apply
from secateur.compress.heal.bn import reestimate_batch_norm

pytestmark = pytest.mark.usefixtures("ranking_path")


@pytest.fixture
def setup(ranking_path, tiny_recipe_file):
    from ranking.setup import read

    return read(tiny_recipe_file)


def test_a_removed_unit_is_a_smaller_network(setup, tmp_path):
    """Oracle: the unit is cut out for real, and batch norm re-estimated by the library."""
    from ranking.setup import truth_samples
    from ranking.truth import measure, prunable

    images, labels = truth_samples(setup, 128)
    truth = measure(setup.program, images, labels, tmp_path / "t.npz", progress=lambda line: None)
    assert truth.complete.all() and truth.names == tuple(g.name for g in prunable(setup.program))
    half = [(images[:64], labels[:64])]
    offset = 0
    for group in prunable(setup.program):
        for unit in (0, group.width - 1):
            keep = {group.name: [u for u in range(group.width) if u != unit]}
            smaller = apply(setup.program, keep)
            for variant, program in (("kept", smaller), ("re-estimated", reestimate_batch_norm(smaller, half))):
                with torch.no_grad():
                    logits = program.eval().module()(images)
                loss = F.cross_entropy(logits.double(), labels, reduction="none").reshape(8, -1).mean(1)
                found = truth.loss[offset + unit, ("re-estimated", "kept").index(variant)]
                # The library stores the unbiased variance: 1 in 4096 more.
                np.testing.assert_allclose(found, loss, rtol=2e-3, atol=2e-4)
        offset += group.width


def test_removal_on_few_samples_is_the_truth_on_them(setup, tmp_path):
    """The rise of the loss is the truth's on the same samples; the divergence is none where nothing changes."""
    from ranking.removed import removal
    from ranking.setup import truth_samples
    from ranking.truth import measure

    images, labels = truth_samples(setup, 64)
    rise = measure(setup.program, images, labels, tmp_path / "t.npz", progress=lambda line: None).rise("re-estimated")
    found = removal(setup.program, images, labels, None)
    np.testing.assert_allclose(np.concatenate([s.delta_loss for s in found.groups.values()]), rise, atol=1e-5)
    softened = np.concatenate([s.delta_loss for s in removal(setup.program, images, labels, 4.0).groups.values()])
    assert (softened >= 0).all() and np.corrcoef(softened, np.abs(rise))[0, 1] > 0.3


def test_what_was_measured_is_not_measured_again(setup, tmp_path):
    from ranking.setup import truth_samples
    from ranking.truth import Truth, measure

    images, labels = truth_samples(setup, 64)
    path, lines = tmp_path / "t.npz", []
    first = measure(setup.program, images, labels, path, subset=5, progress=lines.append)
    assert first.complete.sum() == 5 and lines
    again = measure(setup.program, images, labels, path, subset=5, progress=lambda line: pytest.fail(line))
    np.testing.assert_array_equal(again.loss, first.loss)
    np.testing.assert_array_equal(Truth.load(path)[0].loss, first.loss)
    with pytest.raises(SystemExit, match="measured on something else"):
        measure(setup.program, images, labels, path, subset=6)


def test_turns_measure_on_other_samples_and_are_joined(setup, tmp_path):
    from ranking.setup import truth_samples
    from ranking.truth import merge

    first, second = (truth_samples(setup, 64, turn)[0] for turn in (0, 1))
    assert not torch.equal(first[32:], second[32:])  # the training images of this loader are always the same
    paths = [tmp_path / f"{turn}.npz" for turn in range(3)]
    from ranking.truth import measure

    for turn, subset in ((0, 5), (1, 5), (2, 2)):  # the third lacks units
        measure(setup.program, *truth_samples(setup, 64, turn), paths[turn], subset=subset, progress=lambda line: None)
    truth, about = merge(paths)
    parts = [merge([path])[0] for path in paths[:2]]
    assert about["samples"] == 128 and truth.loss.shape[2] == 16
    for part in ("train", "test", "all"):
        np.testing.assert_allclose(truth.rise("kept", part), sum(p.rise("kept", part) for p in parts) / 2)


def test_agreement_of_known_rankings():
    from ranking.agreement import agreement

    rise = np.array([0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, np.nan, 3])
    same = agreement(rise * 2 + 1, rise, [6, 6], (0.3, 0.5))
    assert same.overall == pytest.approx(1.0) and same.found == (1.0, 1.0)
    opposite = agreement(-rise, rise, [6, 6], (0.3,))
    assert opposite.overall == pytest.approx(-1.0) and opposite.within == pytest.approx(-1.0)
    assert opposite.found == (0.0,)
    # Inside the only group that is large enough the order is right; the other group is shifted.
    shifted = agreement(np.where(np.arange(12) < 6, rise + 100, rise), rise, [6, 6], (0.5,))
    assert shifted.within == pytest.approx(1.0) and shifted.overall < 0.1
    assert agreement(np.ones(12), rise, [6, 6], (0.5,)).overall == 0.0


def test_the_noise_of_the_samples_bounds_the_correlation(ranking_path):
    from ranking.agreement import ceiling
    from ranking.truth import Truth

    generator = np.random.default_rng(0)
    rise = generator.normal(size=(2001, 1, 1)) * np.ones((1, 2, 8))
    rise[-1] = 0.0
    exact = Truth(("a",), (2000,), rise, rise)
    assert ceiling(exact, "kept", "all") == pytest.approx(1.0)
    noisy = Truth(("a",), (2000,), rise + generator.normal(size=rise.shape) * np.sqrt(8), rise)
    # Signal and noise of the mean over all folds are equal: the correlation with the truth is the root of a half.
    assert ceiling(noisy, "kept", "all") == pytest.approx(np.sqrt(0.5), abs=0.05)


def test_torch_pruning_counts_the_last_sample_unless_mended(setup):
    """Closed form: mean over the layers of a group of Σ w² g², with g² of the last sample or the mean over samples."""
    pytest.importorskip("torch_pruning")
    from ranking.setup import first_samples
    from ranking.torch_pruning_scores import hessian

    images, labels = first_samples(setup.data.calibration, 4)
    module = setup.program.clone().eval().module()
    squares = []
    for x, y in zip(images.split(1), labels.split(1), strict=True):
        module.zero_grad()
        F.cross_entropy(module(x), y).backward()
        squares.append({n: p.grad**2 for n, p in module.named_parameters()})
    weights = {n: p.detach() ** 2 for n, p in module.named_parameters()}

    def expected(h):
        conv3 = (weights["conv3.weight"] * h["conv3.weight"]).sum((1, 2, 3))
        return (conv3 + weights["bn3.weight"] * h["bn3.weight"] + (weights["fc.weight"] * h["fc.weight"]).sum(0)) / 3

    released = hessian(setup.program, images, labels, mended=False, normalizer=None)
    np.testing.assert_allclose(released.groups["conv3"].delta_loss, expected(squares[-1]), rtol=1e-4)
    mended = hessian(setup.program, images, labels, mended=True, normalizer=None)
    mean = {n: sum(s[n] for s in squares) / 4 for n in weights}
    np.testing.assert_allclose(mended.groups["conv3"].delta_loss, expected(mean), rtol=1e-4)


def test_the_script_ranks_cuts_and_reports(ranking_path, tiny_recipe_file, tmp_path, capsys):
    import rank_quality

    arguments = [str(tiny_recipe_file), "--quick", "--out", str(tmp_path / "out")]
    arguments += ["--only", "magnitude", "random", "hap, 2 probes"]
    rank_quality.main(arguments)
    printed = capsys.readouterr().out
    folder = tmp_path / "out" / "tiny"
    assert printed.strip() == (folder / "report.md").read_text().strip()
    cuts = [json.loads(line) for line in (folder / "cuts.jsonl").read_text().splitlines()]
    assert {cut["label"] for cut in cuts} == {"magnitude", "random", "hap, 2 probes"}
    for cut in cuts:
        assert cut["macs"] is None or cut["macs"] <= 1 - cut["removed"] + 1e-9
    assert {cut["streams"] for cut in cuts} == {"kept", "free"}
    before = (folder / "cuts.jsonl").read_text()
    rank_quality.main(arguments)
    assert (folder / "cuts.jsonl").read_text() == before
