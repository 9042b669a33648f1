"""Healing and training on the INT8 grid in two processes give what one process gives at the same batches."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.compress.heal.evaluate import cross_entropy
from secateur.compress.heal.heal import heal
from secateur.compress.heal.settings import HealSettings, TrainSettings
from secateur.compress.heal.train import fit
from secateur.compress.quantize import quantize
from secateur.errors import UnsupportedError, UserError
from secateur.export.targets import TARGETS
from secateur.passes.capture import capture
from secateur.passes.program import Program

SIZES = [24, 17, 1, 16]  # an odd batch, and one with fewer samples than processes
PLAIN = {"precision": "fp32", "channels_last": False, "lr": 0.05, "distill_weight": 0.5, "temperature": 2.0}


class Drawn:
    """Batches whose order and noise come from torch's global random numbers, as a user's loader may draw them."""

    def __len__(self):
        return len(SIZES)

    def __iter__(self):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(sum(SIZES), 3, 6, 6, generator=generator)
        y = (x[:, 0].mean((1, 2)) > 0).long() + (x[:, 1].mean((1, 2)) > 0).long()
        order = torch.randperm(len(x))
        for picked in order.split(SIZES):
            yield x[picked] + 0.05 * torch.randn(len(picked), 3, 6, 6), y[picked]


def program(seed: int = 0, dropout: float = 0.0) -> Program:
    torch.manual_seed(seed)
    return capture(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1),
            nn.BatchNorm2d(8, momentum=None),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        ).eval(),
        torch.zeros(2, 3, 6, 6),
    )


def healed(folder: Path | None = None):
    settings = HealSettings(epochs=2, clip_grad=5.0, **PLAIN)
    return heal(
        program(),
        Drawn(),
        teacher=program(1),
        settings=settings,
        validation=list(Drawn()),
        samples=64,
        state_dir=folder,
    )


def quantized():
    settings = TrainSettings(epochs=1, optimizer="adamw", **{**PLAIN, "lr": 1e-3})
    scheme = TARGETS["ort-cpu"].scheme
    return quantize(program(), list(Drawn()), scheme=scheme, samples=64, qat=settings, train=Drawn())


def results(folder: Path | None = None) -> dict[str, Program]:
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return {"heal": healed(folder).program, "qat": quantized().program}


def refusals(rank: int, folder: Path) -> None:
    """What cannot be shared is refused in every process, which would otherwise wait for each other for ever."""
    settings = TrainSettings(epochs=1, **PLAIN)
    torch.manual_seed(rank)
    own = [(torch.randn(8, 3, 6, 6), torch.zeros(8).long())]
    with pytest.raises(UserError, match="different batches"):
        fit(program(), own, cross_entropy, settings)
    static = replace(program(), static_batch=8)
    with pytest.raises(UnsupportedError, match="fixed batch size"):
        fit(static, list(Drawn()), cross_entropy, settings)
    with pytest.raises(UserError, match="different epochs"):
        fit(program(), list(Drawn()), cross_entropy, settings, state_dir=folder if rank == 0 else None)


def equal_weights_with_dropout(rank: int) -> torch.Tensor:
    """Masks differ between the processes, weights must not; nor may the network's draws reach the loader."""
    torch.manual_seed(5)
    fitted = fit(program(dropout=0.5), Drawn(), cross_entropy, TrainSettings(epochs=1, **PLAIN)).program
    return torch.cat([p.detach().flatten() for p in fitted.module().parameters()])


def work(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    shown = []
    for name, found in results(folder / f"state{rank}").items():
        save_file(tensors(found), folder / f"{name}{rank}")
    fit(
        program(),
        list(Drawn()),
        cross_entropy,
        TrainSettings(epochs=1, **PLAIN),
        state_dir=folder / "half",
        progress=lambda done, total, **info: shown.append(done),
    )
    assert bool(shown) == (rank == 0)
    assert (folder / f"state{rank}").exists() == (rank == 0)
    save_file({"weights": equal_weights_with_dropout(rank)}, folder / f"dropout{rank}")
    refusals(rank, folder / "half")
    dist.destroy_process_group()


def tensors(found: Program) -> dict[str, torch.Tensor]:
    module = found.module()
    return {name: t.detach().clone() for name, t in (*module.named_parameters(), *module.named_buffers())}


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_two_processes_give_what_one_gives(tmp_path, warm):
    workers = [subprocess.Popen([warm / "python", __file__, str(rank), str(tmp_path)]) for rank in range(2)]
    try:
        assert [worker.wait(timeout=500) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    start = tensors(program())
    for name, alone in results().items():
        first, second = (load_file(tmp_path / f"{name}{rank}") for rank in range(2))
        expected = tensors(alone)
        assert set(expected) == set(first)
        assert name == "qat" or not torch.allclose(expected["0.weight"], start["0.weight"], atol=1e-3)
        for key, tensor in expected.items():
            assert torch.equal(first[key], second[key]), (name, key)
            torch.testing.assert_close(first[key], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    first, second = (load_file(tmp_path / f"dropout{rank}")["weights"] for rank in range(2))
    assert torch.equal(first, second)


def test_one_process_in_a_group_trains_as_without(tmp_path):
    """The joint batch norm of one process is torch's own."""
    from secateur.compress.heal.replicas import _joint_batch_norm

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for norm in (nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None), nn.BatchNorm2d(4, affine=False)):
            norm, same = norm.double(), nn.BatchNorm2d(4, momentum=norm.momentum, affine=norm.affine).double()
            for _ in range(2):
                x = torch.randn(6, 4, 3, 3, dtype=torch.float64, requires_grad=True)
                z = x.detach().clone().requires_grad_()
                factors = torch.randn_like(x)
                found, expected = _joint_batch_norm(norm, x), same(z)
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
                for out in (found, expected):
                    F.mse_loss(out, factors).backward()
                torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(dict(norm.named_buffers()), dict(same.named_buffers()), rtol=1e-4, atol=1e-6)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
