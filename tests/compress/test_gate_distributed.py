"""Batches shared between processes give what one process gives; one of the processes may have none."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.table import Sensitivity
from secateur.passes.capture import capture

RUNS = {
    "fisher": (3, "gate-fisher", {}),
    "taylor": (3, "taylor", {"per_sample": False}),
    "ggn": (3, "gate-ggn", {"first_order": True, "interactions": True}),
    "drawn": (1, "gate-ggn", {"draws": 4}),
}


def table(name: str) -> Sensitivity:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    batches, method, options = RUNS[name]
    data = [(torch.randn(5, 4), torch.arange(5) % 3) for _ in range(batches)]
    return rank(capture(model, data[0][0][:2]), data, F.cross_entropy, method=method, **options)


def work(number: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    for name in RUNS:
        table(name).save(f"{folder}/{name}{number}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_give_what_one_gives(tmp_path):
    workers = [subprocess.Popen([sys.executable, __file__, str(number), str(tmp_path)]) for number in range(2)]
    try:
        assert [worker.wait(timeout=500) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    for name in RUNS:
        alone = table(name)
        for number in range(2):
            together = Sensitivity.load(tmp_path / f"{name}{number}")
            for group, scores in alone.groups.items():
                assert together.groups[group].delta_loss.tobytes() == scores.delta_loss.tobytes()
                assert together.groups[group].std_error.tobytes() == scores.std_error.tobytes()
            for fact in ("mean_loss", "samples", "batches", "exact", "vectors", "root"):
                assert together.facts.get(fact) == alone.facts.get(fact), (name, fact)
            if alone.interactions is not None:
                np.testing.assert_allclose(together.interactions, alone.interactions, rtol=1e-6, atol=1e-9)


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
