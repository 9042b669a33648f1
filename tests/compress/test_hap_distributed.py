"""Probes shared between processes give the same bits as one process."""

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


def table() -> Sensitivity:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).eval()
    x = torch.randn(5, 4)
    return rank(capture(model, x[:2]), [(x, torch.arange(5) % 3)], F.cross_entropy, probes=5)


def work(number: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    table().save(f"{folder}/{number}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_give_the_bits_of_one(tmp_path):
    workers = [subprocess.Popen([sys.executable, __file__, str(number), str(tmp_path)]) for number in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    alone = table()
    for number in range(2):
        together = Sensitivity.load(tmp_path / str(number))
        for name, scores in alone.groups.items():
            assert together.groups[name].delta_loss.tobytes() == scores.delta_loss.tobytes()
            assert together.groups[name].std_error.tobytes() == scores.std_error.tobytes()


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
