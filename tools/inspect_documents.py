"""What a plan, a verdict or the result of `sparsify` is: a part of `secateur inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..compress.plan import Plan
from ..errors import UserError
from ..steps import PLAN
from ..verdict import Verdict
from .sparsify import FACTS

VERDICT = "verdict.json"


def find_document(source: Path) -> Path | None:
    """The plan, verdict or `sparsify.json` that a path names or that lies in a folder; None if there is none."""
    if source.is_dir():
        return next((source / name for name in (FACTS, PLAN, VERDICT) if (source / name).is_file()), None)
    if source.name in (FACTS, VERDICT):
        return source
    if source.suffix not in (".yaml", ".yml") or not source.is_file():
        return None
    # A plan may have any name: its own key tells it from a recipe.
    lines = source.read_text(encoding="utf-8", errors="replace").splitlines()
    return source if any(line.startswith("secateur: plan/") for line in lines) else None


def inspect_document(console: Console, path: Path, *, as_json: bool) -> None:
    """Prints it.

    Raises:
        UserError: It is damaged.
    """
    if path.name == FACTS:
        found = _facts(path)
        print(json.dumps(found, indent=1)) if as_json else _show_facts(console, found)
    elif path.name == VERDICT:
        verdict = Verdict.from_json(path.read_text(encoding="utf-8"))
        print(verdict.to_json()) if as_json else console.print(verdict.table())
    else:
        found = describe_plan(Plan.load(path))
        print(json.dumps(found, indent=1)) if as_json else _show_plan(console, found)


def describe_plan(plan: Plan) -> dict[str, Any]:
    """A plan as plain data."""
    return {
        "target": plan.target,
        "budget": dict(plan.budget),
        "method": plan.method,
        "dense": {"params": plan.dense.params, "macs": plan.dense.macs},
        "planned": {"params": plan.planned.params, "macs": plan.planned.macs},
        "delta_loss": plan.delta_loss,
        "std_error": plan.std_error,
        "groups": [
            {
                "name": name,
                "action": group.action,
                "kept": group.width - len(group.removed),
                "width": group.width,
                "delta_loss": group.delta_loss,
                "reason": group.reason,
            }
            for name, group in plan.groups.items()
        ],
        "blocks_dropped": list(plan.drops()),
    }


def _show_plan(console: Console, found: dict[str, Any]) -> None:
    dense, planned = found["dense"], found["planned"]
    table = Table("group", "action", "kept", "delta loss", "reason", title_justify="left")
    table.title = (
        f"plan for {found['target']}, ranked by {found['method']}: "
        f"{planned['params']:,} of {dense['params']:,} parameters, {planned['macs']:,} of {dense['macs']:,} MACs"
    )
    for group in found["groups"]:
        kept = f"{group['kept']}/{group['width']}"
        table.add_row(group["name"], group["action"], kept, f"{group['delta_loss']:.3g}", escape(group["reason"]))
    console.print(table)
    for name in found["blocks_dropped"]:
        console.print(f"{name} is dropped", markup=False)


def _facts(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {"folder": str(path.parent), **found, "zeros_by_weight": dict(found["zeros_by_weight"])}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "this file of sparsify is damaged",
            where=str(path),
            why=f"{type(error).__name__}: {error}",
            hint="run it again",
        ) from None


def _show_facts(console: Console, found: dict[str, Any]) -> None:
    table = Table("weight", "zeros", title_justify="left")
    table.title = f"{found['method']}: {found['zeros']:,} of {found['weights']:,} weights are zero"
    for name, share in found["zeros_by_weight"].items():
        table.add_row(name, f"{share:.2%}")
    for name, reason in found["stay_dense"].items():
        table.add_row(name, f"stays dense: {escape(reason)}")
    console.print(table)
    for name, score in found["scores"].items():
        console.print(f"test metric, {name}: {score:.4f}", markup=False)
    console.print(f"artifact: {Path(found['folder']) / 'artifact'}", markup=False, soft_wrap=True)
