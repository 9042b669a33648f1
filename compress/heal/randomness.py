"""Random numbers of a training: a function of seed and epoch, so that an epoch can be repeated exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, epoch: int) -> Iterator[None]:
    """Seeds torch, numpy and `random` from seed and epoch inside the block; the caller's states come back after it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
    with torch.random.fork_rng():
        torch.manual_seed(mixed)
        np.random.seed(mixed)
        random.seed(mixed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
