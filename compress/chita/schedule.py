"""Sparsities of the stages of CHITA++."""

from __future__ import annotations

from typing import Literal

from ...errors import UserError

Schedule = Literal["poly", "exponential", "linear", "constant", "geometric"]


def sparsities(stages: int, sparsity: float, *, schedule: Schedule = "poly", start: float = 0.2) -> tuple[float, ...]:
    """The sparsity after every stage; the last is `sparsity` itself.

    Args:
        stages: T.
        sparsity: s.
        schedule: With s₀ = `start` and x = t/(T-1): `poly` is s + (s₀ - s)(1 - x)³ (Zhu and Gupta 2017), `linear`
            s₀ + (s - s₀) x, `exponential` nears s by halves, `constant` is s from the first on, and `geometric` removes
            the same share of what is left in every stage (M-FAC).
        start: s₀, of the first stage.

    Raises:
        UserError: A value is out of range.
    """
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise UserError(f"stages must be a whole number, at least 1, not {stages!r}", where="sparsify.stages")
    if not 0.0 <= start < 1.0:
        raise UserError(f"the first sparsity must lie in [0, 1), not {start}", where="sparsify.start")
    start = min(start, sparsity)
    if stages == 1 or schedule == "constant":
        return (sparsity,) * stages
    if schedule == "geometric":
        kept = (1.0 - sparsity) / (1.0 - start)
        return (*(1.0 - (1.0 - start) * kept ** ((t + 1) / stages) for t in range(stages - 1)), sparsity)
    if schedule == "exponential":
        whole = 1.0 - 0.5 ** (stages - 1)
        shares = [(1.0 - 0.5**t) / whole for t in range(stages)]
    elif schedule == "linear":
        shares = [t / (stages - 1) for t in range(stages)]
    elif schedule == "poly":
        shares = [1.0 - (1.0 - t / (stages - 1)) ** 3 for t in range(stages)]
    else:
        raise UserError(
            f"unknown schedule {schedule!r}",
            where="sparsify.schedule",
            hint="there is: poly, exponential, linear, constant, geometric",
        )
    return (*(start + (sparsity - start) * share for share in shares[:-1]), sparsity)
