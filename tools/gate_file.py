"""Which artifact, gates and data `secateur check` means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import UserError
from ..gates import CheckFile
from ..recipe_file import parse_recipe, read_yaml
from ..steps import STEPS
from ..validation import explain


def gates_for(source: Path, file: Path | None, limits: Mapping[str, Any]) -> tuple[Path, CheckFile]:
    """The artifact's directory, and what to hold it against.

    Args:
        source: A run directory (its recipe gives gates and data) or an artifact.
        file: A gate file; replaces the recipe's gates.
        limits: Limits from the command line by recipe key; replace both.

    Raises:
        UserError: There is no artifact, or nothing to check.
    """
    raw: dict[str, Any] = {"gates": {}}
    artifact = source
    if (source / "recipe.yaml").is_file():
        artifact = source / STEPS["export"].folder
        recipe = parse_recipe(read_yaml(source / "recipe.yaml", what="resolved recipe"), where=str(source))
        whole = recipe.model_dump(mode="json")
        raw = {key: whole[key] for key in ("gates", "data", "metric")}
    if not artifact.is_dir():
        raise UserError(
            "there is no artifact here",
            where=str(artifact),
            hint=f"secateur export {source}" if artifact != source else "check the path",
        )
    if file is not None:
        given = read_yaml(file, what="gate file")
        if not isinstance(given, dict):
            raise UserError("a gate file must be a mapping with the key `gates`", where=str(file))
        raw = {**raw, **given}
    raw["gates"] = gates = raw.get("gates") or {}
    if not isinstance(gates, dict) or any(gate and not isinstance(gate, dict) for gate in gates.values()):
        limits = {}  # nothing to put them into: what is wrong with these gates is said below
    names = {
        "budget.latency": ("latency", "max"),
        "budget.accuracy_drop": ("accuracy", "max_drop"),
        "budget.size": ("size", "max"),
    }
    for key, value in limits.items():
        gate, limit = names[key]
        raw["gates"] = {**raw["gates"], gate: {**(raw["gates"].get(gate) or {}), limit: value}}
    try:
        return artifact, CheckFile.model_validate(raw)
    except ValidationError as error:
        raise UserError(
            "the gates are not valid",
            where=str(file or source),
            why=explain(error, CheckFile),
            hint="limits look like: latency: {max: 60%}, accuracy: {max_drop: 1.0}, size: {max: 300kB}",
        ) from None
