"""Random square roots z of the positive part of each sample's Hessian in the outputs: E[z zᵀ] = H₊.

One vector makes a backward pass whose squares are never negative, unlike a pair of different vectors.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.linalg import hadamard
from torch import Tensor

from .output_draws import drawn_root
from .output_hessian import PAIRS, OutputLoss, signs

_EXACT = 64
_KRYLOV = 48


def positive_root(out: OutputLoss, draws: int, seed: int) -> tuple[Tensor, str]:
    """Draws z for every sample.

    Up to 64 outputs a sample, z = Σ_r ε_r √λ_r u_r over eigenvectors with random signs. These beat labels drawn from
    the softmax, the usual choice, where a network is sure of itself: a drawn label is then nearly always the one it
    predicts, and all curvature sits in rare draws. The signs of different draws are orthogonal, so that as many draws
    as eigenvectors, rounded up to a power of two, give H₊ exactly.

    With more outputs z is drawn by the structure of H (`drawn_root`), and where none is known it is H₊^½ ε by the
    Lanczos process.

    Args:
        out: The loss of a batch in the outputs.
        draws: How many z a sample.
        seed: Of the randomness.

    Returns:
        [draws, samples, elements], scaled so that the mean over draws and samples of z zᵀ stands for the mean of H₊;
        and how they were found.
    """
    if out.elements <= _EXACT:
        root = out.exact_root()
        vectors = [root.pair(r).left * (root.pair(r).weight > 0) for r in range(root.count)]
        if not vectors:
            return out.slope().new_zeros(draws, out.samples, out.elements), "none"
        stacked = torch.stack(vectors)
        return torch.einsum("dnr,rnk->dnk", _sign_rows(draws, out.samples, root.count, seed, stacked), stacked), "signs"
    root = drawn_root(out, draws, seed)
    if PAIRS in root.kinds:
        generator = torch.Generator().manual_seed(seed)
        starts = [signs((out.samples, out.elements), generator, out.outputs[0]) for _ in range(draws)]
        return torch.stack([_lanczos_root(out, start) for start in starts]), "lanczos"
    found = []
    for number in range(draws):
        pair = root.pair(number)
        # `right` is `left` with the sign of the curvature: half their sum has the positive part only.
        positive = pair.left if pair.right is None else (pair.left + pair.right) / 2
        found.append(positive * (draws * pair.weight).sqrt())
    return torch.stack(found), ", ".join(sorted(root.kinds))


def _sign_rows(draws: int, samples: int, count: int, seed: int, like: Tensor) -> Tensor:
    """Signs [draws, samples, count], independent between samples and orthogonal between draws."""
    order = 1 << (max(draws, count) - 1).bit_length()
    rows = np.random.default_rng(seed).permutation(order)[:draws]
    orthogonal = torch.from_numpy(hadamard(order)[rows, :count]).to(like)
    return orthogonal[:, None, :] * signs((samples, count), torch.Generator().manual_seed(seed), like)


def _lanczos_root(out: OutputLoss, start: Tensor) -> Tensor:
    """H₊^½ v of every sample, from the Krylov space of its v (exact where that is all there is).

    Args:
        out: The loss in the outputs.
        start: v [samples, elements].
    """
    steps = min(_KRYLOV, out.elements)
    vector = start.double()
    norm = vector.norm(dim=1, keepdim=True)
    q, basis = vector / norm, []
    tridiagonal = torch.zeros(out.samples, steps, steps, dtype=torch.float64, device=start.device)
    scale = torch.zeros_like(norm)
    for step in range(steps):
        basis.append(q)
        u = out.product(q.to(start.dtype)).double()
        tridiagonal[:, step, step] = (u * q).sum(1)
        scale = torch.maximum(scale, u.norm(dim=1, keepdim=True))
        # Twice, or rounding brings back what has been found already.
        for other in basis * 2:
            u = u - (u * other).sum(1, keepdim=True) * other
        beta = u.norm(dim=1, keepdim=True)
        # Where only rounding is left the space of that sample is complete.
        beta = torch.where(beta > 1e-5 * scale, beta, 0.0)
        q = torch.where(beta > 0, u / beta.clamp_min(1e-300), 0.0)
        if step + 1 < steps:
            tridiagonal[:, step, step + 1] = tridiagonal[:, step + 1, step] = beta[:, 0]
    values, rotation = torch.linalg.eigh(tridiagonal)
    weights = rotation @ (values.clamp_min(0).sqrt() * rotation[:, 0, :])[:, :, None]
    return ((torch.stack(basis, 1) * weights).sum(1) * norm).to(start.dtype)
