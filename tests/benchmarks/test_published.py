"""The papers' own networks: trained, cut and healed, and continued where a run was stopped."""

import pytest
import torch
from tiny_recipe import model, samples

from secateur.examples.tensor_loader import Loaders, TensorLoader

pytestmark = pytest.mark.usefixtures("ranking_path")


@pytest.fixture
def tiny(ranking_path, monkeypatch):
    import published

    def loader(seed):
        x, y = samples(128, seed)
        x = ((x + 4) * 24).clamp(0, 255).to(torch.uint8)
        return TensorLoader(x, y, batch_size=64, mean=(0.5,) * 3, std=(0.1,) * 3)

    monkeypatch.setattr(published, "loaders", lambda root: Loaders(*(loader(seed) for seed in range(4))))
    network = published.Network(model, 0.4, "nothing")
    monkeypatch.setitem(published.NETWORKS, "resnet32", network)
    return published.main


def test_every_ranking_is_cut_and_healed_once(tiny, tmp_path, capsys):
    command = ["resnet32", "--data", "nowhere", "--out", str(tmp_path), "--quick", "--device", "cpu"]
    tiny(command)
    table, told = capsys.readouterr()
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) == 10 and all(float(row.split("|")[3].strip(" %")) <= 60.0 for row in rows)
    assert {row.split("|")[1].strip() for row in rows} == {"hap", "ehap bf16", "gate-ggn", "magnitude", "random"}
    assert "training: 4 of 4 steps" in told and "hap, healing: 4 of 4 steps" in told
    tiny(command)
    again, told = capsys.readouterr()
    assert again == table and "steps" not in told
    assert (tmp_path / "resnet32" / "report.md").read_text() == table
