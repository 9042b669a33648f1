"""Keys of a recipe that what it asks for does not read: left out where the command line made them idle, else named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .compress.heal.settings import TrainSettings
from .compress.sensitivity.rank import METHODS, options_of, reads
from .errors import UserError
from .recipe import PlanSpec, RankSpec, Recipe

Note = Callable[[str], None]


@dataclass(frozen=True)
class Switch:
    """A key whose value decides whether others are read.

    Attributes:
        section: Section of the recipe.
        key: Its name there.
        reads: Whether this value of it reads them.
        others: Their names.
    """

    section: str
    key: str
    reads: Callable[[Any], bool]
    others: tuple[str, ...]


SWITCHES = (
    Switch("plan", "by", lambda by: by == "structured-chita", ("structured",)),
    Switch("plan", "implant", lambda form: form != "none", ("ni_ratio", "implant_rank", "implant_init")),
    Switch("heal", "method", lambda method: method != "train", ("reconstruct_samples", "ridge")),
    Switch("heal", "optimizer", lambda optimizer: optimizer == "sgd", ("momentum", "nesterov")),
    Switch("heal", "schedule", lambda schedule: schedule == "step", ("milestones", "gamma")),
)
"""Where the file alone asks for both, the sections of the recipe refuse it themselves."""


def leave_out(raw: dict[str, Any], overrides: Mapping[str, Any], note: Note) -> None:
    """Takes what the overrides make idle out of a recipe, in place.

    Args:
        raw: The file, as it was read.
        overrides: Values by dotted key that will replace those of the file.
        note: Told what was left out.
    """
    _leave_out_options(raw, overrides, note)
    for switch in SWITCHES:
        section, value = raw.get(switch.section), overrides.get(f"{switch.section}.{switch.key}")
        if value is None or switch.reads(value) or not isinstance(section, dict):
            continue
        for name in switch.others:
            if name in section:
                note(
                    f"{switch.section}.{name} of the recipe is left out: {switch.section}.{switch.key} {value} does "
                    "not read it"
                )
        raw[switch.section] = {name: given for name, given in section.items() if name not in switch.others}


def tell_unread(recipe: Recipe, raw: Mapping[str, Any], overrides: Mapping[str, Any], note: Note) -> None:
    """Names keys that every method has and that the chosen one does not read.

    Args:
        recipe: What was asked for.
        raw: The file and the overrides, as they were read.
        overrides: Values by dotted key that replaced those of the file.
        note: Told about those that stand in the file.

    Raises:
        UserError: The command line gives such a key of `heal`.
    """
    rank, heal, plan = recipe.rank, recipe.heal, recipe.plan
    read = set(reads(rank.method))
    if rank.verify or plan.blocks == "drop":
        read.add("samples")
    idle = [f"rank.{name}" for name in ("samples", "probes") if name in _section(raw, "rank") and name not in read]
    _tell(idle, f"by rank.method {rank.method}", note)
    training = idle_in_ridge({**_section(raw, "heal"), "method": heal.method})
    asked = [name for name in training if f"heal.{name}" in overrides]
    if asked:
        raise ridge_trains_nothing(asked, where="--set")
    _tell([f"heal.{name}" for name in training], "by heal.method ridge, which trains nothing", note)
    usual = PlanSpec()
    unasked = [] if recipe.budget.latency is not None else ["latency_margin", "latency_seconds"]
    idle = [f"plan.{name}" for name in unasked if getattr(plan, name) != getattr(usual, name)]
    _tell(idle, "without a budget on latency", note)
    if plan.by in ("gain", "sensitivity", "structured-chita") and plan.search_seconds != usual.search_seconds:
        _tell(["plan.search_seconds"], f"by plan.by {plan.by}", note)
    unread = {"auto": (), "always": ("tolerance",), "never": ("tolerance", "qat")}[recipe.quantize.when]
    idle = [f"quantize.{name}" for name in unread if name in _section(raw, "quantize")]
    _tell(idle, f"by quantize.when {recipe.quantize.when}", note)


def idle_in_ridge(given: Mapping[str, Any]) -> list[str]:
    """The settings of a training among those given for healing, if its method is `ridge`, which trains nothing."""
    if given.get("method") != "ridge":
        return []
    return [name for name in given if name in TrainSettings.model_fields and name != "seed" and given[name] != 0]


def ridge_trains_nothing(asked: Sequence[str], *, where: str) -> UserError:
    """What is said about such settings."""
    return UserError(
        f"heal.method ridge does not read {', '.join(asked)}",
        where=where,
        why="it refits the weights in closed form and trains nothing",
        hint=f"leave {'it' if len(asked) == 1 else 'them'} out, or take method both",
    )


def _tell(keys: list[str], by: str, note: Note) -> None:
    if keys:
        note(f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} not read {by}")


def _section(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = raw.get(name)
    return found if isinstance(found, Mapping) else {}


def _leave_out_options(raw: dict[str, Any], overrides: Mapping[str, Any], note: Note) -> None:
    """Options of the recipe's ranking method that the method which replaces it does not have."""
    section, method = raw.get("rank"), overrides.get("rank.method")
    if not isinstance(section, dict) or not isinstance(method, str):
        return
    before = section.get("method", RankSpec().method)
    if before not in METHODS or method not in METHODS:
        return  # what is wrong is said when the recipe is checked
    foreign = [name for name in section if name in options_of(before) and name not in options_of(method)]
    for name in foreign:
        note(f"rank.{name} of the recipe is left out: it is an option of {before}, not of {method}")
    raw["rank"] = {name: value for name, value in section.items() if name not in foreign}
