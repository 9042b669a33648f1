"""Time and memory of the solvers on random data, and beside the public code of CHITA where it is at hand."""

from __future__ import annotations

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateur.compress.chita.backsolve import backsolve
from secateur.compress.chita.constraints import TopK
from secateur.compress.chita.data_matrix import StoredMatrix
from secateur.compress.chita.iht import active_set, start
from secateur.compress.chita.problem import Problem

RIDGE = 1e-3


def problem_of(rows: int, size: int, seed: int = 0) -> Problem:
    """Random gradients of small size, as those of a trained network are."""
    generator = torch.Generator().manual_seed(seed)
    matrix = StoredMatrix(0.01 * torch.randn(rows, size, generator=generator))
    return Problem(matrix, 0.1 * torch.randn(size, generator=generator), RIDGE)


def ours(problem: Problem, sparsity: float) -> dict[str, Callable[[], Any]]:
    """Solvers of ours by name."""
    size = problem.matrix.size
    constraint = TopK(int((1 - sparsity) * size), (slice(0, size),), floor=0)

    def iht() -> None:
        backsolve(problem, active_set(problem, start(problem, constraint), constraint).support)

    return {
        "BSO, ours": lambda: backsolve(problem, constraint.project(problem.center)),
        "IHT with active set, ours": iht,
    }


def theirs(problem: Problem, sparsity: float, checkout: Path) -> dict[str, Callable[[], Any]]:
    """Solvers of the public code (github.com/mazumder-lab/CHITA), as its class CHITA calls them.

    Args:
        problem: Converted to the arrays that they take.
        sparsity: Share of zeros.
        checkout: A copy of that repository; needs numba and scikit-learn.
    """
    sys.path.insert(0, str(checkout))
    try:
        code = importlib.import_module("CHITA_opt.L0_card_const")
    finally:
        sys.path.remove(str(checkout))
    assert isinstance(problem.matrix, StoredMatrix)
    a, w = problem.matrix.values.numpy(), problem.center.numpy()
    kept = int((1 - sparsity) * len(w))
    common = {"lambda1": 0, "lambda2": problem.pull / 2, "M": np.inf, "beta_tilde1": np.zeros_like(w)}

    def bso() -> None:
        code.Heuristic_LS(a @ w, a, w, kept, alpha=np.zeros_like(w), **common, beta_tilde2=w.copy(), use_prune=True)

    def iht() -> None:
        a64, w64 = a.astype(np.float64), w.astype(np.float64)
        given = {**common, "beta_tilde1": np.zeros_like(w64), "beta_tilde2": w64.copy(), "L": None, "buget": None}
        searches = {"iht_max_itr": 50, "ftol": 1e-7, "act_max_itr": 50, "kimp": 1.5, "act_itr": 1}
        descents = {"cd_itr": 0, "ctol": 1e-4, "sea1_max_itr": 5, "sea2_max_itr": 10}
        code.Active_IHTCDLS_PP(a64 @ w64, a64, w64, kept, alpha=np.zeros_like(w64), **given, **searches, **descents)

    return {"BSO, public code": bso, "IHT with active set, public code": iht}


def interleaved(contenders: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each; every round takes one run of each, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            begun = time.process_time()
            run()
            if number:
                times[name].append(time.process_time() - begun)
    return {name: statistics.median(found) for name, found in times.items()}


def growth(rows: list[int], sizes: list[int], sparsity: float = 0.8) -> Iterator[tuple[int, int, float, float]]:
    """Rows, weights, processor seconds of one exact solution, and MB of the gradients."""
    for size in sizes:
        for count in rows:
            problem = problem_of(count, size)
            assert isinstance(problem.matrix, StoredMatrix)
            seconds = interleaved({"x": ours(problem, sparsity)["BSO, ours"]}, 1)["x"]
            yield count, size, seconds, problem.matrix.bytes / 1e6
