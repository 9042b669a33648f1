"""Two processes that share batches, chunks or probes give what one gives."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from secateur.compress.sensitivity.rank import METHODS, rank
from secateur.compress.sensitivity.table import Sensitivity
from secateur.passes.capture import capture

SHARED = [method for method in ("hap", "ehap", "ggn", "obd", "gate-ggn", "gate-fisher") if method in METHODS]


def tables() -> dict[str, Sensitivity]:
    """Three batches of unequal size: one of two processes has more to do."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(80, 1, 4, 4), torch.arange(80) % 3
    program = capture(model.eval(), x[:2])
    batches = list(zip(x.split([40, 33, 7]), y.split([40, 33, 7]), strict=True))
    return {method: rank(program, batches, F.cross_entropy, method=method, probes=5) for method in SHARED}


def work(number: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=number, world_size=2)
    for method, table in tables().items():
        table.save(f"{folder}/{method}-{number}")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_give_what_one_gives(tmp_path, warm):
    workers = [subprocess.Popen([warm / "python", __file__, str(number), str(tmp_path)]) for number in range(2)]
    assert [worker.wait(timeout=500) for worker in workers] == [0, 0]
    for method, alone in tables().items():
        for number in range(2):
            together = Sensitivity.load(tmp_path / f"{method}-{number}")
            assert set(together.groups) == set(alone.groups)
            for name, scores in alone.groups.items():
                for part in ("delta_loss", "std_error"):
                    expected = getattr(scores, part)
                    found = getattr(together.groups[name], part)
                    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
