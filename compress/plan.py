"""The plan: what happens to every group. People read and edit its YAML form; it is the only input of the rewrite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, did_you_mean
from ..passes.blocks import find_blocks
from ..passes.implant import check_implants
from ..passes.implant_form import Implant
from ..passes.labels.groups import Group
from ..passes.program import Program
from .cost.model import Cost

ACTIONS = ("keep", "prune", "implant")
"""What can happen to a group; with `implant`, units may be removed as well."""

BLOCK_ACTIONS = ("keep", "drop")
"""What can happen to a residual block."""

IMPLANT_INITS = ("least-squares", "center", "zeros")
"""Where the weights of implants come from: data, the filters that they replace, or nowhere."""


@dataclass(frozen=True)
class GroupPlan:
    """The decision for one group: one line of the file.

    Attributes:
        width: Units of the group.
        removed: Units that go, least sensitive first.
        delta_loss: Predicted rise of the loss, summed over the removed units (of scores, if the method has no loss).
        std_error: Its standard error: the root of the sum of squares.
        params: Change of the parameters if only this group were cut; zero or negative.
        macs: The same for multiply-accumulates.
        reason: Why, for people.
        implant: Units that stay but are computed by a small stand-in; None if there are none.
        lost: Share of the scores of the implanted units that counts in `delta_loss`; None if that is not predicted.
    """

    width: int
    removed: tuple[int, ...] = ()
    delta_loss: float = 0.0
    std_error: float = 0.0
    params: int = 0
    macs: int = 0
    reason: str = ""
    implant: Implant | None = None
    lost: float | None = None

    @property
    def action(self) -> str:
        """One of `ACTIONS`."""
        return "implant" if self.implanted else "prune" if self.removed else "keep"

    @property
    def implanted(self) -> tuple[int, ...]:
        """Units that a stand-in computes."""
        return self.implant.units if self.implant is not None else ()

    @property
    def whole(self) -> int:
        """How many units keep their own filters."""
        return self.width - len(self.removed) - len(self.implanted)

    @property
    def kept(self) -> tuple[int, ...]:
        """Units that stay, ascending; the implanted ones among them."""
        gone = set(self.removed)
        return tuple(unit for unit in range(self.width) if unit not in gone)


@dataclass(frozen=True)
class BlockPlan:
    """The decision for one residual block that can be dropped: one line of the file.

    Attributes:
        dropped: Whether its branch goes; the skip connection stays.
        delta_loss: Measured rise of the loss if it goes, everything else as it is.
        std_error: Its standard error.
        params: Change of the parameters if only this block went; zero or negative.
        macs: The same for multiply-accumulates.
        reason: Why, for people.
    """

    dropped: bool
    delta_loss: float = 0.0
    std_error: float = 0.0
    params: int = 0
    macs: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """The decisions for all groups, and what they were made for.

    Attributes:
        target: Name of the target whose width grid the plan keeps.
        budget: The budgets as they were given.
        method: Ranking method.
        unit: What `delta_loss` is measured in: "loss" or "score".
        seed: Seed of the ranking, if it had one.
        settings: Settings of the planner.
        optimality: Which search found the plan, a proven lower bound of its loss and the gap to it, if it proves one.
        measured: By cost that is not counted (latency at each batch size, size, memory): what was predicted and, for
            latency, measured on the rewritten network, as shares of the dense FP32 network.
        implant_init: Where the weights of implants come from, one of `IMPLANT_INITS`.
        program: Fingerprint of the groups that the plan belongs to.
        dense: Cost of the whole network.
        planned: Cost of what the plan leaves.
        delta_loss: Predicted rise of the loss over all groups.
        std_error: Its standard error.
        groups: Decisions by group name, in the program's order.
        blocks: Decisions by name of residual block, if any was to be chosen.
    """

    target: str
    budget: Mapping[str, Any]
    method: str
    unit: str
    program: str
    dense: Cost
    planned: Cost
    delta_loss: float
    std_error: float
    groups: Mapping[str, GroupPlan]
    seed: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    implant_init: str = "least-squares"
    optimality: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    blocks: Mapping[str, BlockPlan] = field(default_factory=dict)

    def keep(self) -> dict[str, tuple[int, ...]]:
        """Kept units of every group that loses some: the input of `apply` and `mask`."""
        return {name: group.kept for name, group in self.groups.items() if group.removed}

    def implants(self) -> dict[str, Implant]:
        """Implants by group name: the further input of `implant` and `mask`."""
        return {name: group.implant for name, group in self.groups.items() if group.implant and group.implanted}

    def drops(self) -> tuple[str, ...]:
        """Names of the blocks that are dropped."""
        return tuple(name for name, block in self.blocks.items() if block.dropped)

    @property
    def structural_init(self) -> str:
        """Where the weights of implants come from before any data is seen: what `implant` and `mask` take."""
        return "zeros" if self.implant_init == "zeros" else "center"

    def check(self, program: Program) -> None:
        """Checks that the plan belongs to a program.

        Raises:
            UserError: Groups are missing, unknown, of another width, frozen and yet cut, or cannot have implants; or a
                block is unknown, or dropped while units of it are cut.
        """
        groups = {group.name: group for group in program.groups}
        hint = "plan again for this program"
        for name, line in self.groups.items():
            group = groups.get(name)
            if group is None:
                raise UserError(
                    f"the plan names a group that the program lacks: {name}{did_you_mean(name, groups)}", hint=hint
                )
            if group.width != line.width:
                raise UserError(
                    f"the plan was made for another width of {name}",
                    why=f"it has {group.width} units, the plan says {line.width}",
                    hint=hint,
                )
            if group.frozen is not None and line.removed:
                raise UserError(
                    f"{name} cannot be pruned",
                    where=group.frozen.where,
                    why=group.frozen.reason,
                    hint=group.frozen.hint or f"write {name}: {{action: keep, keep: {group.width}/{group.width}}}",
                )
        missing = [name for name in groups if name not in self.groups]
        if missing:
            width = groups[missing[0]].width
            raise UserError(
                f"the plan says nothing about {', '.join(missing[:3])}",
                hint=f"add the line {missing[0]}: {{action: keep, keep: {width}/{width}}}, or {hint}",
            )
        if self.program != fingerprint(program.groups):
            raise UserError("the plan was made for another program", why="other groups are frozen now", hint=hint)
        kept = {name: np.array(group.kept) for name, group in self.groups.items()}
        check_implants(program, self.implants(), kept, self.structural_init)
        self._check_blocks(program)

    def _check_blocks(self, program: Program) -> None:
        for block in find_blocks(program, self.blocks) if self.blocks else []:
            for group in program.groups:
                line = self.groups[group.name]
                if self.blocks[block.name].dropped and block.holds(group) and (line.removed or line.implanted):
                    raise UserError(
                        f"the block {block.name} is dropped, and units of {group.name} in it are cut",
                        where="blocks",
                        why="all of them go with the block",
                        hint=f"write {group.name}: {{action: keep, keep: {group.width}/{group.width}}}, "
                        f"or {block.name}: {{action: keep}} under blocks",
                    )

    def save(self, path: str | Path) -> None:
        """Writes the YAML form; the file is replaced whole or not at all.

        Raises:
            UserError: The file cannot be written.
        """
        from .plan_file import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Reads a plan, edited or not.

        Raises:
            UserError: No file, no YAML, unknown keys, or decisions that contradict themselves.
        """
        from .plan_file import load

        return load(Path(path))


def fingerprint(groups: Iterable[Group]) -> str:
    """Hash of the names, widths and frozenness of groups."""
    text = json.dumps([[g.name, g.width, g.frozen is not None] for g in groups])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
