"""The refusal of budgets that cannot be met: by how much, and which that can are nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...errors import BudgetError
from . import milp
from .limits import WORDS, Limit
from .problem import ROUNDING, Problem


def refusal(problem: Problem, limits: Sequence[Limit], seconds: float) -> BudgetError | None:
    """Why no choice is within the limits; None if one is.

    Each budget that no choice can meet by itself is raised to the least that one can. If these can be met together they
    are the nearest; else the choice whose largest overrun, as a share of its limit, is smallest gives them.

    Args:
        problem: The problem.
        limits: Its limits, one a column.
        seconds: Time limit of each search.
    """
    if all(choice.scores is None for choice in problem.choices):
        return _nothing_to_remove(problem, limits)
    smallest = problem.costs(problem.last[None])[0]
    if _within(smallest, problem.limits).all() or (position := _nearest(problem, seconds)) is None:
        return None
    costs = problem.costs(position[None])[0]
    if _within(costs, problem.limits).all():
        return None
    alone = [_least(problem, column, seconds) for column in range(len(limits))]
    raised = np.maximum(problem.limits, alone)
    together = milp.nearest(replace(problem, limits=raised), seconds=seconds)
    if together is not None and _within(problem.costs(together[None])[0], raised).all():
        costs = np.minimum(problem.costs(together[None])[0], raised)
    over = ~_within(costs, problem.limits)
    impossible = ~_within(np.array(alone), problem.limits)
    names = list(dict.fromkeys(limit.label for limit, is_over in zip(limits, over, strict=True) if is_over))
    pair = not impossible.any()
    told = [limit.label for limit in limits] if pair else names
    return BudgetError(
        f"the budget on {' and '.join(dict.fromkeys(told))} cannot be met{' together' if pair else ''}",
        where=f"budget {', '.join(dict.fromkeys(_asked(limit) for limit in limits))}",
        why=_why(limits, alone, costs, pair=pair),
        hint=f"the nearest that can: {_typed(limits, costs)}; or a lower floor, or fewer ignored groups",
    )


def _nearest(problem: Problem, seconds: float) -> np.ndarray | None:
    return milp.nearest(problem, seconds=seconds)


def _least(problem: Problem, column: int, seconds: float) -> float:
    """The least of one cost that any choice has."""
    others = np.full(len(problem.limits), np.inf)
    others[column] = problem.limits[column]
    position = milp.least_cost(replace(problem, limits=others), column, seconds=seconds)
    return float(problem.costs(position[None])[0, column]) if position is not None else float(problem.limits[column])


def _within(costs: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return costs <= limits * (1 + ROUNDING)


def _why(limits: Sequence[Limit], alone: Sequence[float], costs: np.ndarray, *, pair: bool) -> str:
    least = _by_label(limits, alone)
    said = [f"{limit.label} {_share(limit, cost)}" for limit, cost in least.values()]
    if not pair:
        return f"the least that any choice has: {', '.join(said)}"
    at = [f"{limit.label} {_share(limit, cost)}" for limit, cost in _by_label(limits, costs).values()]
    return f"each alone can be met (at least: {', '.join(said)}); the choice nearest to all has {', '.join(at)}"


def _by_label(limits: Sequence[Limit], costs: Sequence[float] | np.ndarray) -> dict[str, tuple[Limit, float]]:
    """The largest cost of each label: moments of memory share one."""
    found: dict[str, tuple[Limit, float]] = {}
    for limit, cost in zip(limits, costs, strict=True):
        if limit.label not in found or cost > found[limit.label][1]:
            found[limit.label] = (limit, float(cost))
    return found


def _share(limit: Limit, cost: float) -> str:
    share = f"{100 * cost / limit.dense:.2f}%"
    return f"{cost:,.0f} of {limit.dense:,.0f} ({share})" if limit.budget in ("params", "macs") else share


def _typed(limits: Sequence[Limit], costs: np.ndarray) -> str:
    """Flags that can be met: those that cannot are raised, each to the larger of its costs."""
    worst: dict[str, tuple[float, str]] = {}
    for limit, cost in zip(limits, costs, strict=True):
        excess = cost / limit.bound
        text = limit.text(cost) if excess > 1 + ROUNDING else ""
        if limit.budget not in worst or excess > worst[limit.budget][0]:
            worst[limit.budget] = (excess, text)
    flags = [f"--max-{name} {text}" for name, (_, text) in worst.items() if text]
    kept = [name for name, (_, text) in worst.items() if not text]
    return " ".join(flags) + (f" (with the budget on {', '.join(WORDS[k] for k in kept)} as it is)" if kept else "")


def _asked(limit: Limit) -> str:
    amount = limit.amount
    return f"{limit.budget}: {100 * amount.value:g}%" if amount.relative else f"{limit.budget}: {_plain(limit)}"


def _plain(limit: Limit) -> str:
    value = limit.amount.value
    if limit.budget == "latency":
        return f"{1e3 * value:g}ms"
    return f"{value:,.0f}"


def _nothing_to_remove(problem: Problem, limits: Sequence[Limit]) -> BudgetError | None:
    position = problem.first
    costs = problem.costs(position[None])[0]
    over = [limit for limit, fits in zip(limits, _within(costs, problem.limits), strict=True) if not fits]
    if not over:
        return None
    names = " and ".join(dict.fromkeys(limit.label for limit in over))
    return BudgetError(
        f"the budget on {names} cannot be met: nothing in this network can be removed",
        where=f"budget {', '.join(dict.fromkeys(_asked(limit) for limit in over))}",
        why="; ".join(f"{c.group.name} is {c.reason}" for c in problem.choices[:8])
        or "it has no layers whose channels could go",
        hint="secateur inspect shows every group and why it stays whole; a budget of 100% only quantises",
    )
