"""The parts of head pruning that need neither the pretrained encoder nor its data."""

import lzma

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """A transformer layer with names as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.ModuleDict(
            {"self": nn.ModuleDict({n: nn.Linear(16, 16) for n in ("query", "key", "value")})}
        )
        self.attention["output"] = nn.Linear(16, 16)
        self.intermediate, self.output = nn.ModuleDict({"dense": nn.Linear(16, 24)}), nn.Linear(24, 16)
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)

    def forward(self, x):
        q, k, v = (
            self.attention["self"][n](x).unflatten(-1, (4, 4)).transpose(1, 2) for n in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.first(x + self.attention["output"](mixed))
        return self.second(x + self.output(F.gelu(self.intermediate["dense"](x))))


@pytest.fixture
def program():
    from secateur.passes.capture import capture

    torch.manual_seed(0)
    return capture(nn.Sequential(Layer(), Layer()), torch.randn(2, 5, 16))


def test_the_lowest_of_each_kind_go(ranking_path, program):
    from heads.removal import kept

    from secateur.api import rank

    table = rank(program, method="magnitude")
    keep = kept(program, table, 0.5, ["heads", "neurons"])
    heads = {name: units for name, units in keep.items() if "query" in name}
    assert sum(len(units) for units in heads.values()) == 4 and len(heads) == 2
    assert sum(len(units) for units in keep.values()) == 4 + 24
    scores = {name: table.groups[name].delta_loss for name in heads}
    stay = min(scores[name][unit] for name, units in heads.items() for unit in units)
    gone = max(scores[name][unit] for name, units in heads.items() for unit in set(range(4)) - set(units.tolist()))
    assert gone <= stay or any(len(units) == 1 for units in heads.values())
    assert set(kept(program, table, 0.5, ["heads"])) == set(heads)
    # A layer keeps one head even where it has the lowest of all.
    assert min(len(units) for units in kept(program, table, 0.99, ["heads"]).values()) == 1


def test_batches_are_of_nearly_equal_length_and_differ_by_epoch(ranking_path):
    from heads.text import Loader, Sentences, chosen

    random = np.random.default_rng(0)
    ids = tuple([7] * int(n) for n in random.integers(3, 30, 500))
    sentences = Sentences(ids, tuple(random.integers(0, 2, 500).tolist()))
    loader = Loader(sentences, batch=16, shuffle=True)
    seen, waste = 0, 0
    for inputs, labels in loader:
        assert (
            inputs["attention_mask"].sum(1).min() >= 3 and (inputs["input_ids"] == 7 * inputs["attention_mask"]).all()
        )
        seen += len(labels)
        waste += int((1 - inputs["attention_mask"]).sum())
    assert seen == 500 and len(loader) == 32
    assert waste < 0.05 * sum(map(len, ids))
    first = [labels.tolist() for _, labels in loader]
    assert first == [labels.tolist() for _, labels in loader]
    loader.set_epoch(1)
    assert first != [labels.tolist() for _, labels in loader]
    drawn = chosen(sentences, 20, 3)
    assert [len(ids) for ids in drawn.ids] == sorted(len(ids) for ids in drawn.ids) and drawn == chosen(
        sentences, 20, 3
    )


def test_sentences_are_read(ranking_path, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    from heads.text import read

    words = {"[UNK]": 0, "good": 1, "bad": 2, "film": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with lzma.open(tmp_path / "sst2_dev.tsv.xz", "wt") as file:
        file.write("a good film\t1\nbad bad bad bad\t0\n")
    found = read(tmp_path, "dev", tmp_path / "tokenizer.json", 3)
    assert found.ids == ([0, 1, 3], [2, 2, 2]) and found.labels == (1, 0)


def test_the_table_has_mean_and_deviation(ranking_path):
    from heads.report import table

    results = [
        {"method": "taylor", "what": "heads", "removed": 0.4, "seed": s, "cut": c, "healed": h, "params": 0.6}
        for s, c, h in ((0, 0.80, 0.88), (1, 0.82, 0.90))
    ]
    lines = table([*results, {**results[0], "method": "random", "healed": None}], 0.9)
    assert lines[0] == "Dense: 90.00% on the test set."
    assert "| taylor | 81.00 ± 1.41 (2) | 89.00 ± 1.41 (2) |" in lines
    assert "| random | 80.00 (1) | – |" in lines
