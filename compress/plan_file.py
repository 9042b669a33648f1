"""The YAML form of a plan: one line a group, made to be read and edited."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, did_you_mean
from ..passes.implant import check_form
from ..passes.implant_form import Implant
from .cost.model import Cost
from .plan import ACTIONS, BLOCK_ACTIONS, IMPLANT_INITS, BlockPlan, GroupPlan, Plan
from .plan_text import (
    estimate,
    flow,
    get_key,
    integer,
    mapping,
    no_unknown,
    number,
    parse,
    percent,
    read_estimate,
)

FORMAT = "plan/1"

_HEADER = """\
# What secateur will remove, one line a group. Edit it and apply it again:
#   keep: kept/all units        removed: the units that go, least sensitive first; the list decides
# To cut less, take units off the end of `removed`; to cut more, add some; then correct `keep` (or write keep: /all).
# delta_loss is predicted for removing these units, ± one standard error{unit}.
# params and macs say what a group's cut saves if it is the only one.
"""

_IMPLANT_HEADER = """\
#   implant: units that stay but are computed by a small stand-in instead of their own filters; keep counts the others
# To keep an implanted unit whole, take it off `units`; to prune it, move it to `removed`; then correct `keep`.
# lost: the share of the units' scores that delta_loss counts as lost to their implant; without it, none is predicted.
"""

_BLOCK_HEADER = """\
# blocks: residual blocks whose branch can go; action: drop drops it, action: keep keeps it. delta_loss was measured
# with that branch alone gone. Groups inside a dropped block go with it: their own action is keep.
"""

_KEYS = (
    "secateur",
    "target",
    "budget",
    "ranking",
    "planner",
    "program",
    "dense",
    "planned",
    "delta_loss",
    "implants",
    "optimality",
    "measured",
    "blocks",
    "groups",
)
_GROUP_KEYS = ("action", "keep", "delta_loss", "params", "macs", "reason", "implant", "removed")
_BLOCK_KEYS = ("action", "delta_loss", "params", "macs", "reason")


def save(plan: Plan, path: Path) -> None:
    """Writes a plan; see `Plan.save`."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(dumps(plan), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UserError("the plan cannot be written", where=str(path), why=str(error)) from None


def load(path: Path) -> Plan:
    """Reads a plan; see `Plan.load`."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            "there is no plan here", where=str(path), hint="check the path, or make one with plan"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("the plan cannot be read", where=str(path), why=str(error)) from None
    return loads(text, where=str(path))


def dumps(plan: Plan) -> str:
    """The text of a plan."""
    ranking: dict[str, Any] = {"method": plan.method, "unit": plan.unit}
    if plan.seed is not None:
        ranking["seed"] = plan.seed
    dense, planned = plan.dense, plan.planned
    share = {"params": percent(planned.params, dense.params), "macs": percent(planned.macs, dense.macs)}
    lines = [
        _HEADER.format(unit="" if plan.unit == "loss" else "; this method gives scores, not losses")
        + (_IMPLANT_HEADER if plan.implants() else "")
        + (_BLOCK_HEADER if plan.blocks else "")
        + f"secateur: {FORMAT}",
        f"target: {flow(plan.target)}",
        f"budget: {flow(plan.budget)}",
        f"ranking: {flow(ranking)}",
        f"planner: {flow(plan.settings)}",
        f"program: {flow(plan.program)}",
        f"dense: {{params: {dense.params}, macs: {dense.macs}}}",
        f"planned: {{params: {planned.params}, macs: {planned.macs}}}  # {share['params']} and {share['macs']}",
        f"delta_loss: {estimate(plan.delta_loss, plan.std_error)}",
        *([f"implants: {{init: {plan.implant_init}}}"] if plan.implants() else []),
        *([f"optimality: {flow(plan.optimality)}"] if plan.optimality else []),
        *(["measured:"] if plan.measured else []),
        *(f"  {flow(name)}: {flow(found)}" for name, found in plan.measured.items()),
        *(["blocks:"] if plan.blocks else []),
        *(f"  {flow(name)}: {_block_line(block)}" for name, block in plan.blocks.items()),
        "groups:" if plan.groups else "groups: {}",
    ]
    lines += [f"  {flow(name)}: {_group_line(group)}" for name, group in plan.groups.items()]
    return "\n".join(lines) + "\n"


def loads(text: str, *, where: str = "plan") -> Plan:
    """Reads the text of a plan.

    Args:
        text: YAML.
        where: What to call it in errors.

    Raises:
        UserError: See `Plan.load`.
    """
    raw = mapping(parse(text, where), where)
    no_unknown(raw, _KEYS, where)
    if raw.get("secateur") != FORMAT:
        raise UserError(
            "this is not a plan of this version of secateur",
            where=where,
            why=f"it says secateur: {raw.get('secateur')}, not {FORMAT}",
            hint="plan again",
        )
    ranking, planner = (mapping(get_key(raw, key, where), f"{where}, {key}") for key in ("ranking", "planner"))
    no_unknown(ranking, ("method", "unit", "seed"), f"{where}, ranking")
    groups = mapping(get_key(raw, "groups", where), f"{where}, groups")
    delta_loss, std_error = read_estimate(get_key(raw, "delta_loss", where), where)
    return Plan(
        target=str(get_key(raw, "target", where)),
        budget=mapping(get_key(raw, "budget", where), f"{where}, budget"),
        method=str(get_key(ranking, "method", f"{where}, ranking")),
        unit=str(get_key(ranking, "unit", f"{where}, ranking")),
        seed=ranking.get("seed"),
        settings=planner,
        program=str(get_key(raw, "program", where)),
        dense=_cost(raw, "dense", where),
        planned=_cost(raw, "planned", where),
        delta_loss=delta_loss,
        std_error=std_error,
        implant_init=_read_init(raw.get("implants", {}), f"{where}, implants"),
        optimality=mapping(raw.get("optimality", {}), f"{where}, optimality"),
        measured={
            str(name): mapping(found, f"{where}, measured, {name}")
            for name, found in mapping(raw.get("measured", {}), f"{where}, measured").items()
        },
        blocks={
            str(name): _read_block(line, f"{where}, blocks, {name}")
            for name, line in mapping(raw.get("blocks", {}), f"{where}, blocks").items()
        },
        groups={str(name): _read_group(line, f"{where}, groups, {name}") for name, line in groups.items()},
    )


def _group_line(group: GroupPlan) -> str:
    fields = [f"action: {group.action}", f"keep: {group.whole}/{group.width}"]
    if group.removed or group.implanted:
        fields.append(f"delta_loss: {estimate(group.delta_loss, group.std_error)}")
        fields.append(f"params: {group.params}, macs: {group.macs}")
    if group.reason:
        fields.append(f"reason: {json.dumps(group.reason, ensure_ascii=False)}")
    if group.implant and group.implanted:
        rank = f", rank: {group.implant.rank}" if group.implant.rank is not None else ""
        lost = f", lost: {number(group.lost)}" if group.lost is not None else ""
        fields.append(f"implant: {{form: {group.implant.form}{rank}{lost}, units: {list(group.implanted)}}}")
    if group.removed:
        fields.append(f"removed: {list(group.removed)}")
    return "{" + ", ".join(fields) + "}"


def _block_line(block: BlockPlan) -> str:
    fields = [f"action: {'drop' if block.dropped else 'keep'}"]
    fields.append(f"delta_loss: {estimate(block.delta_loss, block.std_error)}")
    fields.append(f"params: {block.params}, macs: {block.macs}")
    if block.reason:
        fields.append(f"reason: {json.dumps(block.reason, ensure_ascii=False)}")
    return "{" + ", ".join(fields) + "}"


def _read_block(raw: Any, where: str) -> BlockPlan:
    line = mapping(raw, where)
    no_unknown(line, _BLOCK_KEYS, where)
    action = get_key(line, "action", where)
    if action not in BLOCK_ACTIONS:
        raise UserError(
            f"unknown action {action!r}{did_you_mean(str(action), BLOCK_ACTIONS)}",
            where=where,
            hint=f"there is: {', '.join(BLOCK_ACTIONS)}",
        )
    delta_loss, std_error = read_estimate(line.get("delta_loss", "0 ± 0"), where)
    return BlockPlan(
        dropped=action == "drop",
        delta_loss=delta_loss,
        std_error=std_error,
        params=integer(line.get("params", 0), "params", where),
        macs=integer(line.get("macs", 0), "macs", where),
        reason=str(line.get("reason", "")),
    )


def _read_group(raw: Any, where: str) -> GroupPlan:
    line = mapping(raw, where)
    no_unknown(line, _GROUP_KEYS, where)
    action = get_key(line, "action", where)
    if action not in ACTIONS:
        raise UserError(
            f"unknown action {action!r}{did_you_mean(str(action), ACTIONS)}",
            where=where,
            hint=f"there is: {', '.join(ACTIONS)}",
        )
    if "keep" not in line:
        raise UserError(
            "the key keep is missing",
            where=where,
            hint="keep: /32, with the number of all units: removed then decides",
        )
    kept, width = _read_keep(line["keep"], where)
    removed = _read_units(line.get("removed", []), width, "removed", where)
    implant, lost = _read_implant(line["implant"], width, f"{where}, implant") if "implant" in line else (None, None)
    implanted = implant.units if implant is not None else ()
    both = set(removed) & set(implanted)
    if both:
        raise UserError(f"unit {min(both)} is removed and implanted", where=where, hint="list it in one of the two")
    if len(removed) == width:
        raise UserError("no unit of the group would be left", where=where, hint="keep at least one")
    fitting = "implant" if implanted else "prune" if removed else "keep"
    if action != fitting:
        raise UserError(
            f"action: {action} contradicts removed: {removed}" + (f", implant: {list(implanted)}" if implanted else ""),
            where=where,
            hint=f"write action: {fitting}, or "
            + ("list the units that go" if action == "prune" else "list its units under implant: {units: [...]}")
            if action != "keep"
            else f"write action: {fitting}, or take {'removed' if removed else 'implant'} away",
        )
    if kept is not None and kept != width - len(removed) - len(implanted):
        raise UserError(
            f"keep and removed disagree: keep is {kept}/{width}, "
            f"removed leaves {width - len(removed) - len(implanted)}" + (" beside the implants" if implanted else ""),
            where=where,
            why=f"removed decides, and lists {len(removed)} units",
            hint=_reconcile(kept, width, removed, len(implanted)),
        )
    delta_loss, std_error = read_estimate(line.get("delta_loss", "0 ± 0"), where)
    return GroupPlan(
        width=width,
        removed=tuple(removed),
        delta_loss=delta_loss,
        std_error=std_error,
        params=integer(line.get("params", 0), "params", where),
        macs=integer(line.get("macs", 0), "macs", where),
        reason=str(line.get("reason", "")),
        implant=implant,
        lost=lost,
    )


def _read_units(units: Any, width: int, key: str, where: str) -> list[int]:
    """A list of distinct units of a group."""
    if not isinstance(units, list) or not all(isinstance(u, int) and not isinstance(u, bool) for u in units):
        raise UserError(f"{key} is not a list of unit numbers", where=where, hint=f"{key}: [3, 7, 12]")
    outside = [u for u in units if not 0 <= u < width]
    if outside:
        raise UserError(f"there is no unit {outside[0]}", where=where, why=f"units are numbered 0 to {width - 1}")
    twice = [u for i, u in enumerate(units) if u in units[:i]]
    if twice:
        verb = "removed" if key == "removed" else "implanted"
        raise UserError(f"unit {twice[0]} is {verb} twice", where=where, hint="list every unit once")
    return units


def _read_implant(raw: Any, width: int, where: str) -> tuple[Implant, float | None]:
    line = mapping(raw, where)
    no_unknown(line, ("form", "rank", "lost", "units"), where)
    form = str(get_key(line, "form", where))
    rank = integer(line["rank"], "rank", where) if "rank" in line else None
    check_form(form, rank, where=where)
    units = _read_units(get_key(line, "units", where), width, "units", where)
    if not units:
        raise UserError("no unit is implanted", where=where, hint="list some, or take implant away")
    lost = line.get("lost")
    if lost is not None and (isinstance(lost, bool) or not isinstance(lost, int | float) or not 0.0 <= lost <= 1.0):
        raise UserError(
            f"lost: {lost} is no share",
            where=where,
            hint="0 loses nothing of the units' scores, 1 all; or leave it out",
        )
    return Implant(tuple(units), form, rank), None if lost is None else float(lost)


def _read_init(raw: Any, where: str) -> str:
    line = mapping(raw, where)
    no_unknown(line, ("init",), where)
    init = str(line.get("init", IMPLANT_INITS[0]))
    if init not in IMPLANT_INITS:
        raise UserError(
            f"unknown init {init!r}{did_you_mean(init, IMPLANT_INITS)}",
            where=where,
            hint=f"there is: {', '.join(IMPLANT_INITS)}",
        )
    return init


def _reconcile(kept: int, width: int, removed: list[int], implanted: int) -> str:
    """What to write so that `kept` units stay whole."""
    wanted = width - implanted - kept
    if not 0 <= wanted < width:
        return f"keep lies between {0 if implanted else 1} and {width - implanted}"
    if wanted == 0 and implanted:
        return f"to remove none: keep: {kept}/{width}, and no removed"
    if wanted == 0:
        return f"to keep all: action: keep, keep: {width}/{width}, and no removed"
    as_listed = f"; or, to remove what is listed, keep: {width - implanted - len(removed)}/{width}"
    if wanted < len(removed):
        return f"to keep {kept}, removed: {removed[:wanted]}{as_listed}"
    return f"to keep {kept}, add {wanted - len(removed)} units to removed{as_listed}"


def _read_keep(text: Any, where: str) -> tuple[int | None, int]:
    """Kept and all units; `/32` (or `"?/32"`) leaves the first to `removed`."""
    match = re.fullmatch(r"\s*(\d+|\??)\s*/\s*(\d+)\s*", str(text))
    if not match or int(match[2]) < 1:
        raise UserError(
            f"keep: {text} is no share of units", where=where, hint="kept units / all units, as in keep: 20/32"
        )
    return (int(match[1]) if match[1].isdigit() else None), int(match[2])


def _cost(raw: Mapping[str, Any], key: str, where: str) -> Cost:
    where = f"{where}, {key}"
    cost = mapping(get_key(raw, key, where), where)
    no_unknown(cost, ("params", "macs"), where)
    return Cost(*(integer(get_key(cost, part, where), part, where) for part in ("params", "macs")))
