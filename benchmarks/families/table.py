"""The table of models in docs/models.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_HEAD = """# Models

What became of the models of timm, transformers and torchvision, each with random weights and a small input: captured,
half of every group removed at random, healed for one optimiser step, exported, and run in onnxruntime. Written by
`python benchmarks/zoo.py --table docs/models.md` with {versions}.

- **prunable**: share of the parameters that lie on a unit which may be removed.
- **frozen**: share that may not be, by reason; the legend is below. What is left belongs to no unit (rows of an
  embedding, tables of positions).
- **apply = mask**: largest difference between the network with units removed and the one with the same units silenced,
  relative to the largest output, at two batch sizes (one where the model fixes its batch, marked †).
- **ONNX**: the same between onnxruntime and torch, of the smaller and healed network, read back from its artifact.
- A number in brackets counts operations that took the torch exporter's translation.

{summary}
"""


def document(results: Sequence[dict[str, Any]], versions: str) -> str:
    """The page.

    Args:
        results: What `check` returned, in the order of the table.
        versions: Of the libraries.
    """
    reasons = _legend(results)
    lines = [_HEAD.format(versions=versions, summary=_summary(results))]
    for library in dict.fromkeys(result["library"] for result in results):
        lines += [f"## {library}", "", _COLUMNS, _RULE]
        lines += [_row(result, reasons) for result in results if result["library"] == library]
        lines.append("")
    lines += ["## Why parts stay whole", ""]
    lines += [f"{number}. {reason}. For example {example}." for reason, (number, example) in reasons.items()]
    lines += ["", *_refusals(results), *_notes(results)]
    return "\n".join(lines).rstrip() + "\n"


_COLUMNS = "| model | what it stands for | parameters | prunable | frozen | apply = mask | healed | ONNX |"
_RULE = "|---|---|---|---|---|---|---|---|"


def _row(result: dict[str, Any], reasons: dict[str, tuple[int, str]]) -> str:
    stages = result["stages"]
    cells = [result["name"], result["family"]]
    capture, groups, apply = (stages.get(stage, {}) for stage in ("capture", "groups", "apply"))
    if capture.get("status") != "ok":
        return "| " + " | ".join([*cells, "–", "–", "–", "–", "–", _failure(next(iter(stages.values())))]) + " |"
    fixed = " †" if capture["static_batch"] else ""
    cells.append(_count(capture["params"]))
    if groups.get("status") == "ok":
        shares = [f"{share:.0%} ({reasons[reason][0]})" for reason, share in groups["frozen"].items() if share >= 0.005]
        cells += [f"{groups['prunable']:.0%}", ", ".join(shares) or "–"]
    else:
        cells += ["–", _failure(groups)]
    cells.append(f"{apply['difference']:.0e}{fixed}" if "difference" in apply else _failure(apply))
    for stage in ("heal", "export"):
        found = stages.get(stage, {})
        cells.append("yes" if stage == "heal" and found.get("status") == "ok" else _export(found) or _failure(found))
    return "| " + " | ".join(cells) + " |"


def _export(found: dict[str, Any]) -> str:
    if "difference" not in found:
        return ""
    others = len(found["fallbacks"])
    return (
        f"{found['difference']:.0e}" + (f" ({others})" if others else "") + " **wrong**" * (found["status"] == "wrong")
    )


def _failure(found: dict[str, Any]) -> str:
    return {"refused": "refused, see below", "error": "**failed**", "wrong": "**wrong**"}.get(
        found.get("status", ""), "–"
    )


def _count(params: int) -> str:
    return f"{params / 1e6:.1f} M" if params >= 1e6 else f"{params:,}"


def _legend(results: Iterable[dict[str, Any]]) -> dict[str, tuple[int, str]]:
    """Number and an example of every reason, the most frequent first."""
    seen: dict[str, list[str]] = {}
    for result in results:
        groups = result["stages"].get("groups", {})
        for reason in groups.get("frozen", {}):
            text = groups.get("examples", {}).get(reason, "")
            seen.setdefault(reason, []).append(f"{result['name']}: {text}" if text else result["name"])
    order = sorted(seen, key=lambda reason: -len(seen[reason]))
    return {reason: (number, seen[reason][0]) for number, reason in enumerate(order, 1)}


def _refusals(results: Iterable[dict[str, Any]]) -> list[str]:
    lines = []
    for result in results:
        for stage, found in result["stages"].items():
            if found["status"] in ("refused", "error", "wrong"):
                parts = [found[key] for key in ("what", "where", "why", "hint") if found.get(key)]
                said = "; ".join(parts) or f"a difference of {found.get('difference', 0):.1e}"
                lines.append(f"- **{result['name']}**, {stage} {found['status']}: {said}")
    return ["## What was refused", "", *lines, ""] if lines else []


def _notes(results: Iterable[dict[str, Any]]) -> list[str]:
    """What capture says about training, the names of modules left out, with the models it says it of."""
    said: dict[str, list[str]] = {}
    for result in results:
        for note in result["stages"].get("capture", {}).get("notes", ()):
            said.setdefault(note.split(":")[0], []).append(result["name"])
    lines = [f"- {note}: {', '.join(dict.fromkeys(names))}." for note, names in said.items()]
    return ["## What programs leave out in training", "", *lines, ""] if lines else []


def _summary(results: Sequence[dict[str, Any]]) -> str:
    def good(stage: str) -> int:
        return sum(result["stages"].get(stage, {}).get("status") == "ok" for result in results)

    wrong = sum(found["status"] == "wrong" for result in results for found in result["stages"].values())
    return (
        f"**{len(results)} models**: {good('capture')} captured; apply = mask on {good('apply')}, "
        f"{good('heal')} healed, "
        f"{good('export')} exported and equal in onnxruntime; **{wrong} wrong**."
    )
