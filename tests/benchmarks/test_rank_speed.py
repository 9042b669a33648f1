"""The benchmark of speed: its contenders compute what they are said to compute."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.compress.heal.evaluate import cross_entropy

pytestmark = pytest.mark.usefixtures("ranking_path")


@pytest.fixture
def task(ranking_path):
    from dataclasses import replace

    from ranking.networks import NETWORKS
    from ranking.speed import make_task

    return make_task(replace(NETWORKS["resnet20"], width=4), 4)


def quadratic_form(task, module, weights, signs):
    """vᵀHv of the mean loss, from a graph of its own."""
    loss = cross_entropy(module(task.images), task.labels)
    gradient = torch.autograd.grad(loss, weights, create_graph=True)
    along = sum((g * v).sum() for g, v in zip(gradient, signs, strict=True))
    return sum((h * v).sum() for h, v in zip(torch.autograd.grad(along, weights), signs, strict=True)).item()


def test_our_probe_sums_to_the_quadratic_form(task):
    from ranking.contenders import _signs, hap

    step = hap(task)
    torch.manual_seed(3)
    channels = step()
    weights = [m.weight for m in task.program.module().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    torch.manual_seed(3)
    assert [len(c) for c in channels] == [len(w) for w in weights]
    assert sum(c.sum().item() for c in channels) == pytest.approx(
        quadratic_form(task, task.program.module(), weights, _signs(weights)), rel=1e-3
    )


@pytest.mark.parametrize("name", ["hap_loop", "hap_loop_rebuilt"])
def test_haps_loop_sums_to_the_quadratic_form(task, name):
    from ranking import contenders

    step = getattr(contenders, name)(task)
    torch.manual_seed(3)
    channels = step()
    weights = [m.weight for m in task.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    torch.manual_seed(3)
    signs = [torch.randint_like(w, high=2) * 2 - 1 for w in weights]
    assert [len(c) for c in channels] == [len(w) for w in weights]
    assert sum(map(sum, channels)) == pytest.approx(quadratic_form(task, task.module, weights, signs), rel=1e-3)


def test_every_contender_takes_attention(ranking_path):
    from dataclasses import replace

    from ranking.contenders import CONTENDERS
    from ranking.networks import NETWORKS
    from ranking.speed import Clock, make_task, probes

    task = make_task(replace(NETWORKS["encoder"], width=64), 2)
    lines = []
    times = probes(task, Clock.of(1), 1, lines.append)
    missing = {name for name in CONTENDERS if any(line.startswith(f"{name}: left out") for line in lines)}
    assert set(times) == set(CONTENDERS) - missing and missing <= {"PyHessian"}
    assert all(len(values) == 1 for values in times.values())


def test_whole_estimators_and_growth_are_timed(ranking_path):
    from dataclasses import replace

    from ranking.networks import NETWORKS
    from ranking.speed import Clock, estimators
    from ranking.speed_report import estimator_table, probe_table

    times, refused = estimators(replace(NETWORKS["resnet20"], width=4), 2, Clock.of(1), 1)
    assert {"hap", "magnitude"} <= set(times) and not refused
    assert len(estimator_table("t", times, refused)) == len(times) + 5
    table = probe_table("t", {"gradient": [1.0, 2.0], "hap (FP32)": [2.0, 6.0]}, {"hap (FP32)": 0.5})
    assert table[-2] == "| hap (FP32) | 4.000 [2.000, 6.000] | 2.50 | 1.00 | 0.50 | 1.00 |"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_of_the_process_alone(tmp_path):
    """A parent that has taken 0.7 GiB must not show in the child's figure."""
    script = Path(__file__).parents[2] / "benchmarks" / "rank_speed.py"
    ballast = torch.ones(180_000_000)
    command = [sys.executable, str(script), "--out", str(tmp_path), "--peak", "resnet20", "gradient", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ballast.sum() > 0 and 0.0 < float(done.stdout) < 0.5
