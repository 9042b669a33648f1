"""The baselines against dense oracles and against their papers' own recursions."""

import pytest
import torch

from secateur.compress.baselines import cbs, mfac, woodfisher
from secateur.compress.baselines.inverse_fisher import InverseFisher
from secateur.compress.chita.constraints import PerLayer, TopK
from secateur.compress.chita.data_matrix import StoredMatrix
from secateur.compress.chita.problem import Problem
from secateur.compress.chita.stage import Stage
from secateur.compress.chita.variables import Variable, Variables
from secateur.errors import UserError

SIZES = (24, 40)
P = sum(SIZES)


def stage(n=20, sparsity=0.5, ridge=1e-2, block_size=None, seed=0) -> Stage:
    generator = torch.Generator().manual_seed(seed)
    items = (Variable("a", torch.Size((6, 4)), 0, 1), Variable("b", torch.Size((5, 8)), 24, 1))
    variables = Variables(items, {})
    matrix = StoredMatrix(torch.randn(n, P, generator=generator))
    center = torch.randn(P, generator=generator)
    hessian = matrix.values.T @ matrix.values / n

    def loss(w):
        return float((w - center) @ hessian @ (w - center))

    constraint = TopK.of(variables, sparsity)
    return Stage(Problem(matrix, center, ridge), constraint, variables, loss, block_size=block_size)


def dense_inverse(a, ridge):
    a = a.double()
    return torch.linalg.inv(a.T @ a / len(a) + ridge * torch.eye(a.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("n", [20, 100])
def test_the_inverse_fisher_is_the_dense_inverse(n):
    a = torch.randn(n, P)
    expected = dense_inverse(a, 1e-2)
    found = InverseFisher(StoredMatrix(a), 1e-2)
    v = torch.randn(P)
    assert torch.allclose(found.diagonal(), expected.diagonal(), rtol=1e-3, atol=1e-3)
    assert torch.allclose(found.apply(v), expected @ v.double(), rtol=1e-3, atol=1e-2)


def test_it_is_the_recursion_of_woodfisher_and_of_mfac():
    a, ridge = torch.randn(12, 30).double(), 1e-2
    inverse = torch.eye(30, dtype=torch.float64) / ridge
    for row in a:
        image = inverse @ row
        inverse = inverse - torch.outer(image, image) / (len(a) + row @ image)
    h, d = [], []
    for row in a:
        image = row / ridge - sum((hj * ((hj @ row) / dj) for hj, dj in zip(h, d, strict=True)), torch.zeros(30))
        h.append(image)
        d.append(len(a) + row @ image)
    v = torch.randn(30).double()
    matrix_free = v / ridge - sum(hi * ((hi @ v) / di) for hi, di in zip(h, d, strict=True))
    found = InverseFisher(StoredMatrix(a.float()), ridge).apply(v.float())
    assert torch.allclose(inverse @ v, matrix_free, rtol=1e-8)
    assert torch.allclose(found, matrix_free, rtol=1e-3, atol=1e-2)


def surgery_oracle(at: Stage, spans):
    """Scores and added single updates, block by block, from dense inverses."""
    w = at.problem.center.double()
    inverse = torch.zeros(P, P, dtype=torch.float64)
    for span in spans:
        inverse[span, span] = dense_inverse(at.problem.matrix.values[:, span], at.problem.ridge)
    diagonal = inverse.diagonal()
    pruned = (w.square() / diagonal).argsort()[: P - at.constraint.kept]
    change = torch.zeros(P, dtype=torch.float64)
    for q in pruned.tolist():
        change -= inverse[:, q] * w[q] / diagonal[q]
    found = w + change
    found[pruned] = 0
    return found


@pytest.mark.parametrize("block_size", [None, 8])
def test_woodfisher_is_block_surgery(block_size):
    at = stage(block_size=block_size)
    spans = (
        [slice(0, 24), slice(24, 64)]
        if block_size is None
        else [slice(0, 8), slice(8, 16), slice(16, 24), *(slice(i, i + 8) for i in range(24, 64, 8))]
    )
    assert torch.allclose(woodfisher.prune(at).double(), surgery_oracle(at, spans), rtol=1e-2, atol=1e-3)


def test_mfac_is_surgery_with_the_whole_fisher():
    at = stage()
    assert torch.allclose(mfac.prune(at).double(), surgery_oracle(at, [slice(0, P)]), rtol=1e-2, atol=1e-3)


def test_swaps_change_the_objective_of_cbs_by_what_their_gains_say():
    at = stage()
    search = cbs.Swaps.of(at.problem.matrix, at.problem.center, at.variables)
    keep = at.constraint.project(at.problem.center)
    alpha, beta = search.gains(keep)
    out, inside = (~keep).nonzero()[:, 0], keep.nonzero()[:, 0]
    gamma = search._interaction(out, inside)
    before = search.value(keep)
    for i in range(0, len(out), 5):
        for j in range(0, len(inside), 5):
            swapped = keep.clone()
            swapped[out[i]], swapped[inside[j]] = True, False
            gain = float(alpha[out[i]] - beta[inside[j]] + gamma[i, j])
            assert before - search.value(swapped) == pytest.approx(gain, abs=1e-3)


def test_the_objective_of_cbs_is_the_dense_one():
    at = stage()
    search = cbs.Swaps.of(at.problem.matrix, at.problem.center, at.variables)
    keep = at.constraint.project(at.problem.center)
    a, w = at.problem.matrix.values, torch.where(keep, 0.0, at.problem.center)
    expected = sum(float((a[:, s] @ w[s]).square().sum()) for s in (slice(0, 24), slice(24, 64))) / len(a)
    assert search.value(keep) == pytest.approx(expected, rel=1e-4)


def test_rounds_of_cbs_find_better_sets_of_the_same_size():
    better = 0
    for seed in range(10):
        at = stage(seed=seed, n=60)
        search = cbs.Swaps.of(at.problem.matrix, at.problem.center, at.variables)
        keep = at.constraint.project(at.problem.center)
        moved = search.round(keep)
        assert int(moved.sum()) == int(keep.sum())
        better += search.value(moved) < search.value(keep)
    assert better >= 6


def test_cbs_prunes_no_worse_than_magnitude_with_the_same_update():
    from secateur.compress.chita.solve import solve

    for seed in range(5):
        at = stage(seed=seed, n=60)
        found = cbs.prune(at)
        assert int((found != 0).sum()) == at.constraint.kept
        assert at.loss_of(found) <= at.loss_of(solve(at.problem, at.constraint, "bso").w) * 1.5


def test_cbs_with_another_pattern_is_refused():
    at = stage()
    other = Stage(at.problem, PerLayer.of(at.variables, 0.5), at.variables, at.loss_of)
    with pytest.raises(UserError, match="cbs swaps weights of all layers"):
        cbs.prune(other)


def test_on_the_same_support_the_joint_update_beats_the_added_single_ones():
    from secateur.compress.chita.backsolve import backsolve

    for seed in range(5):
        at = stage(seed=seed)
        w = mfac.prune(at)
        support = w != 0
        joint = backsolve(at.problem, support)
        kept = torch.where(support, at.problem.center, 0.0)
        assert joint.value <= at.problem.value(w) * (1 + 1e-6)
        assert joint.value <= at.problem.value(kept) * (1 + 1e-6)


def test_magnitude_masks_of_the_papers_checkpoint_are_those_of_their_code(checkpoints):
    """Kept weights and thresholds, computed once from the public checkpoint; ours is in half precision."""
    from safetensors.torch import load_file

    from secateur.compress.baselines.magnitude import prune
    from secateur.compress.chita.variables import find_variables
    from secateur.examples.cifar_resnet import resnet20
    from secateur.passes.capture import capture

    network = resnet20(shortcut="B", head="fc")
    network.load_state_dict(load_file(checkpoints / "resnet20_chita_fp16.safetensors"))
    program = capture(network.eval(), (torch.zeros(2, 3, 32, 32),))
    variables = find_variables(program, ["*.downsample.*"])
    center = variables.read(program)
    assert variables.size == 268_336
    for sparsity, kept, threshold in ((0.5, 134_168, 0.056300), (0.7, 80_500, 0.090551), (0.9, 26_833, 0.154963)):
        w = prune(center, TopK.of(variables, sparsity))
        assert int((w != 0).sum()) == kept
        assert float(w[w != 0].abs().min()) == pytest.approx(threshold, rel=1e-3)
    first = [256, 528, 551, 545, 562, 608, 462, 1187, 1836, 1423, 916, 1329, 687, 2699, 4447, 3664, 2385, 1976]
    found = {item.name: int((w[item.span] != 0).sum()) for item in variables}
    order = [f"layer{s}.{b}.conv{c}.weight" for s in (1, 2, 3) for b in range(3) for c in (1, 2)]
    counts = [found["conv1.weight"], *(found[name] for name in order)]
    assert counts == pytest.approx([*first, 262], abs=4)
    assert found["fc.weight"] == pytest.approx(510, abs=2)
