"""Probes, or batches, shared between processes give the same bits as one process."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from secateur.compress.sensitivity.rank import rank
from secateur.compress.sensitivity.table import Sensitivity
from secateur.passes.capture import capture

CASES = {
    "hap": {"probes": 5},
    "hap, deflated, until it is sure": {"probes": 200, "deflate": 3, "stop": 0.9},
    "hap, more processes than vectors": {"probes": 2, "deflate": 1, "layerwise": True},
    "ehap": {"method": "ehap", "probes": 5},
    "oba": {"method": "oba"},
    "sosp": {"method": "sosp"},
}


def tables() -> dict[str, Sensitivity]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x, y = torch.randn(7, 4), torch.arange(7) % 3
    program, loader = capture(model, x[:2]), list(zip(x.split(3), y.split(3), strict=True))
    return {name: rank(program, loader, F.cross_entropy, **options) for name, options in CASES.items()}


def work(number: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    for name, table in tables().items():
        table.save(f"{folder}/{number} {name}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_give_the_bits_of_one(tmp_path):
    workers = [subprocess.Popen([sys.executable, __file__, str(number), str(tmp_path)]) for number in range(2)]
    assert [worker.wait(timeout=500) for worker in workers] == [0, 0]
    for case, alone in tables().items():
        for number in range(2):
            together = Sensitivity.load(tmp_path / f"{number} {case}")
            for name, scores in alone.groups.items():
                assert together.groups[name].delta_loss.tobytes() == scores.delta_loss.tobytes(), case
                assert together.groups[name].std_error.tobytes() == scores.std_error.tobytes(), case
            same = ("probes", "misplaced", "mean_loss", "retried", "samples", "batches")
            assert {k: together.facts.get(k) for k in same} == {k: alone.facts.get(k) for k in same}, case
    assert 8 <= tables()["hap, deflated, until it is sure"].facts["probes"] < 200


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
