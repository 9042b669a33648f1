"""Out of memory: the same scores from smaller chunks, and an error when nothing smaller is left."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dense_hessian import batches, data, flat, small_program

from secateur.compress.sensitivity.batches import Batch
from secateur.compress.sensitivity.chunks import Chunks
from secateur.compress.sensitivity.rank import rank
from secateur.errors import EnvironmentLacksError


def loss_that_needs_memory(limit, message="DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."):
    """Cross entropy, as long as there are no more samples than `limit`."""
    seen = []

    def loss(output, target):
        seen.append(len(output))
        if len(output) > limit:
            raise RuntimeError(message)
        return F.cross_entropy(output, target)

    return loss, seen


@pytest.mark.parametrize("method", ["hap", "oba", "sosp"])
@pytest.mark.parametrize(("limit", "chunk"), [(6, 6), (5, 3), (1, 1)])
def test_smaller_chunks_give_the_same_scores(method, limit, chunk):
    program, (x, y) = small_program(), data()
    loss, seen = loss_that_needs_memory(limit)
    whole = rank(program, batches(x, y, 12), F.cross_entropy, method=method, probes=3)
    found = rank(program, batches(x, y, 12), loss, method=method, probes=3)
    np.testing.assert_allclose(flat(found), flat(whole), rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(flat(found, "std_error"), flat(whole, "std_error"), rtol=1e-7, atol=1e-12)
    assert found.facts["samples_a_chunk"] == chunk and "samples_a_chunk" not in whole.facts
    assert found.facts["mean_loss"] == pytest.approx(whole.facts["mean_loss"])
    assert sum(n for n in seen if n <= limit) == 12


def test_later_batches_are_cut_at_once():
    program, (x, y) = small_program(), data()
    loss, seen = loss_that_needs_memory(3)
    rank(program, batches(x, y, 6), loss, method="hap", probes=2)
    assert seen == [6, 3, 3, 3, 3]


def test_progress_never_exceeds_its_total():
    program, (x, y) = small_program(), data()
    loss, _ = loss_that_needs_memory(3)
    steps = []
    rank(
        program,
        batches(x, y, 6),
        loss,
        method="hap",
        probes=4,
        progress=lambda done, total, **info: steps.append((done, total)),
    )
    assert steps[-1] == (8, 8) and all(a <= b for a, b in itertools.pairwise(steps))


def test_one_sample_that_does_not_fit_is_an_error():
    program, (x, y) = small_program(), data()
    loss, seen = loss_that_needs_memory(0)
    with pytest.raises(EnvironmentLacksError, match="memory does not suffice"):
        rank(program, batches(x, y, 12), loss, method="hap", probes=2)
    assert seen == [12, 6, 3, 2, 1]


def test_a_batch_that_must_not_be_cut_is_an_error():
    batch = Batch((torch.zeros(4, 2),), {}, torch.zeros(4), 4)

    def work(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(EnvironmentLacksError) as caught:
        Chunks("the batch is baked into a reshape").run(batch, work)
    assert "the batch is baked into a reshape" in caught.value.why


def test_what_is_no_lack_of_memory_passes_through():
    batch = Batch((torch.zeros(4, 2),), {}, torch.zeros(4), 4)

    def work(batch):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Chunks().run(batch, work)


def test_only_what_has_samples_is_cut():
    table = torch.arange(6.0).reshape(2, 3)
    batch = Batch((torch.arange(5.0), table), {"k": torch.arange(5) * 10, "flag": True}, (torch.arange(5), None), 5)
    chunks, seen = Chunks(), []

    def work(part):
        if part.size > 2:
            raise MemoryError
        seen.append(part)
        return part.args[0].mean(dim=0, keepdim=True)

    assert chunks.run(batch, work).item() == pytest.approx(2.0)
    assert [part.size for part in seen] == [2, 1, 2] or [part.size for part in seen] == [2, 2, 1]
    assert all(part.args[1] is table and part.kwargs["flag"] is True for part in seen)
    assert torch.cat([part.kwargs["k"] for part in seen]).tolist() == [0, 10, 20, 30, 40]
    assert torch.cat([part.target[0] for part in seen]).tolist() == [0, 1, 2, 3, 4]
