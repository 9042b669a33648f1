"""The benchmark of sparsity: it continues where it was stopped, and its tables say what was measured."""

import pytest
import torch
from tiny_recipe import model, samples

from secateur.examples.tensor_loader import TensorLoader
from secateur.passes.capture import capture

pytestmark = pytest.mark.usefixtures("ranking_path")


@pytest.fixture
def tiny(ranking_path, monkeypatch):
    from sparsity_cases.setup import NORMALISATION, Setup

    monkeypatch.setitem(NORMALISATION, "own", ((0.0,) * 3, (1.0,) * 3))
    x, y = samples(256, 1)
    x = ((x + 4) * 24).clamp(0, 255).to(torch.uint8)
    loader = TensorLoader(x, y, batch_size=64, mean=(0.5,) * 3, std=(0.1,) * 3)
    program = capture(model(), (torch.zeros(2, 3, 8, 8),)).eval()
    return Setup(program, "own", (x, y), loader)


def test_what_was_measured_is_not_measured_again(tiny, tmp_path):
    from sparsity_cases.measure import CASES, run_all, stored

    cases = [case for case in CASES if case.label in {"MP", "WF", "CHITA (BSO)"}]
    path, said = tmp_path / "a.jsonl", []
    common = {"samples": 32, "holdout": 32}
    run_all(tiny, cases[:2], [0.5], [0], path, common, said.append)
    run_all(tiny, cases, [0.5], [0], path, common, said.append)
    records = stored(path)
    assert [record["label"] for record in records] == ["MP", "WF", "CHITA (BSO)"]
    assert len(said) == 3
    assert all(record["zeros"] == pytest.approx(0.5, abs=1e-3) for record in records)
    assert [record["shared_gradients"] for record in records] == [False, True, True]
    refitted = [case for case in CASES if case.label == "MP, layers refitted"]  # takes none, though there are some
    run_all(tiny, [*cases, *refitted], [0.6], [0], path, common, said.append)
    assert stored(path)[-1]["label"] == "MP, layers refitted" and not stored(path)[-1]["shared_gradients"]


def test_tables_show_mean_and_spread_over_seeds_and_the_published_row():
    from sparsity_cases.report import accuracy_table

    records = [
        {"label": "MP", "sparsity": 0.7, "seed": 0, "kept": 70.0},
        {"label": "MP", "sparsity": 0.7, "seed": 1, "kept": 72.0},
    ]
    table = "\n".join(accuracy_table(records, "kept", "T"))
    assert "| MP | 71.00 ± 1.41 |" in table
    assert "| *MP, published* | *78.79* |" in table


def test_our_solvers_are_timed_on_the_same_problem():
    from sparsity_cases.speed import growth, interleaved, ours, problem_of

    times = interleaved(ours(problem_of(20, 500), 0.8), 1)
    assert set(times) == {"BSO, ours", "IHT with active set, ours"}
    assert [row[:2] for row in growth([10], [100, 200])] == [(10, 100), (10, 200)]


def test_the_network_without_batch_norm_is_measured_as_it_is(ranking_path, tmp_path):
    from sparsity_cases.measure import CASES, run_all, stored
    from sparsity_cases.setup import MLPNet, Setup

    x = (torch.rand(64, 1, 28, 28) * 255).to(torch.uint8)
    loader = TensorLoader(x, torch.arange(64) % 10, batch_size=32, mean=(0.1,), std=(0.3,))
    setup = Setup(capture(MLPNet().eval(), (torch.zeros(2, 1, 28, 28),)).eval(), "mnist", (x, loader.labels), loader)
    run_all(setup, [case for case in CASES if case.label == "MP"], [0.9], [0], tmp_path / "a.jsonl", {}, lambda _: None)
    (record,) = stored(tmp_path / "a.jsonl")
    assert record["reestimated"] is None and record["zeros"] == pytest.approx(0.9, abs=1e-3)


def test_a_network_is_trained_once_and_kept(tiny, tmp_path, monkeypatch, capsys):
    from sparsity_cases import mobilenet

    path = tmp_path / "out" / "net.safetensors"
    monkeypatch.setattr(mobilenet, "WIDTH", 0.125)
    first = mobilenet.trained(tiny.loader(0), path, epochs=1)
    assert "epoch 1/1" in capsys.readouterr().err
    again = mobilenet.trained(tiny.loader(0), path, epochs=1)
    assert not capsys.readouterr().err and not again.training
    x = torch.randn(2, 3, 16, 16)
    assert torch.allclose(first(x), again(x), atol=1e-5)
