"""The task: sentiment of sentences (SST-2), as token ids in batches of nearly equal lengths."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Batch = tuple[dict[str, Tensor], Tensor]


@dataclass(frozen=True)
class Sentences:
    """Tokenised sentences with their labels.

    Attributes:
        ids: Token ids of each sentence, special tokens included.
        labels: 0 (negative) or 1 (positive).
    """

    ids: tuple[list[int], ...]
    labels: tuple[int, ...]


def read(folder: Path, split: str, tokenizer: Path, longest: int) -> Sentences:
    """Reads `sst2_<split>.tsv.xz`.

    Args:
        folder: Where the file lies.
        split: train, dev or test.
        tokenizer: A `tokenizer.json`.
        longest: Longer sentences are cut to so many tokens.
    """
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.enable_truncation(longest)
    encoder.no_padding()
    with lzma.open(folder / f"sst2_{split}.tsv.xz", "rt", encoding="utf-8") as lines:
        pairs = [line.rstrip("\n").rsplit("\t", 1) for line in lines if line.strip()]
    encoded = encoder.encode_batch([text for text, _ in pairs])
    return Sentences(tuple(e.ids for e in encoded), tuple(int(label) for _, label in pairs))


@dataclass
class Loader:
    """Batches `({"input_ids", "attention_mask"}, labels)`, each as long as its longest sentence.

    Attributes:
        sentences: What is read.
        batch: Sentences a batch.
        shuffle: Whether the order is drawn anew each epoch; else it is that of the file.
        seed: Of the shuffling.
        epoch: Set by the trainer.
    """

    sentences: Sentences
    batch: int = 32
    shuffle: bool = False
    seed: int = 0
    epoch: int = 0

    def set_epoch(self, epoch: int) -> None:
        """Tells the epoch, on which the order depends."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.sentences.ids) // self.batch)

    def __iter__(self) -> Iterator[Batch]:
        lengths = np.array([len(ids) for ids in self.sentences.ids])
        random = np.random.default_rng((self.seed, self.epoch))
        order = np.arange(len(lengths))
        if self.shuffle:
            # Sorted inside pools of many batches: nearly equal lengths, yet other batches in every epoch.
            order = random.permutation(order)
            pools = np.array_split(order, max(1, len(order) // (64 * self.batch)))
            order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        starts = np.arange(0, len(order), self.batch)
        for start in random.permutation(starts) if self.shuffle else starts:
            yield self._collate(order[start : start + self.batch])

    def _collate(self, rows: np.ndarray) -> Batch:
        longest = max(len(self.sentences.ids[row]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for position, row in enumerate(rows):
            tokens = self.sentences.ids[row]
            ids[position, : len(tokens)] = torch.tensor(tokens)
            mask[position, : len(tokens)] = 1
        labels = torch.tensor([self.sentences.labels[row] for row in rows])
        return {"input_ids": ids, "attention_mask": mask}, labels


def chosen(sentences: Sentences, count: int, seed: int) -> Sentences:
    """So many sentences drawn at random, shorter ones first."""
    rows = np.random.default_rng(seed).permutation(len(sentences.ids))[:count]
    rows = sorted(rows, key=lambda row: len(sentences.ids[row]))
    return Sentences(tuple(sentences.ids[row] for row in rows), tuple(sentences.labels[row] for row in rows))
