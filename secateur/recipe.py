"""The recipe: everything one compile is asked for, as data that is checked before anything runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from .compress.budget import Budget
from .compress.chita.structured_settings import StructuredSettings
from .compress.heal.settings import HealSettings, TrainSettings
from .compress.sensitivity.rank import check_options
from .compress.sensitivity.verify import LEAST
from .errors import UserError, did_you_mean
from .export.targets import TARGETS
from .export.tensorrt.settings import EngineSettings
from .factory import DataSpec
from .gates import MOST_THREADS, Gates
from .passes.implant_form import RANKED

NAMED = {"loss": ("cross_entropy",), "metric": ("top1",)}
"""Losses and metrics that have a name; `inputs` holds the functions."""


class Section(BaseModel):
    """A part of a recipe: immutable, and no key that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Section):
    """The trained model.

    Attributes:
        factory: `package.module:function` or `path/to/file.py:function` that returns an `nn.Module`.
        args: Keyword arguments of the factory.
        checkpoint: safetensors file with its weights; None if the factory returns a trained model.
        allow_pickle: Also reads `.pt`/`.pth` checkpoints (weights only). Off by default.
        dynamic: Axes besides the batch that may change their length, by argument of forward: `{input_ids: [1]}`.
    """

    factory: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None
    allow_pickle: bool = False
    dynamic: dict[str, list[int]] = Field(default_factory=dict)


class RankSpec(Section):
    """How sensitivities are estimated; see `secateur.compress.sensitivity.rank`.

    Every other key is an option of the method itself (`rank: {method: hap, layerwise: true}`).

    Attributes:
        method: Name of the estimator.
        samples: How many calibration samples it reads.
        probes: Random vectors of a stochastic estimator.
        verify: So many units, drawn at random, are really removed, one at a time, and compared with their scores.
        verify_batch_norm: Statistics of batch norm when they are: those that were trained, or estimated anew each time.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    method: str = "gate-ggn"
    samples: int = Field(default=512, ge=1)
    probes: int = Field(default=64, ge=2)
    verify: int = Field(default=0, ge=0)
    verify_batch_norm: Literal["kept", "reestimated"] = "kept"

    @field_validator("verify")
    @classmethod
    def _enough_to_correlate(cls, units: int) -> int:
        if 0 < units < LEAST:
            raise ValueError(f"take at least {LEAST} units, or 0 for no verification")
        return units

    @property
    def options(self) -> dict[str, Any]:
        """The method's own options."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _known_method_and_options(self) -> RankSpec:
        try:
            check_options(self.method, self.options, common=tuple(type(self).model_fields)[1:])
        except UserError as error:
            raise ValueError(f"{error.what}; {error.why or error.hint}") from None
        return self


class PlanSpec(Section):
    """How the plan is made; see `secateur.compress.planner.plan`.

    Attributes:
        floor: Share of every group that is always kept.
        by: `gain` weighs predicted loss against cost; `sensitivity` is HAP's global threshold; `milp` is exact; `auto`
            is exact where latency, size or memory is limited, else `gain`.
            `structured-chita` chooses jointly, from data.
        ignore: Patterns of group names that are left whole.
        latency_margin: Share of a latency budget that is kept free, as measurements vary.
        latency_seconds: Time for measuring layers whose times are not cached yet.
        search_seconds: Time limit of each exact search.
        frontier: Points of the Pareto frontier of loss and cost that are worked out beside the plan; 0 for none.
        stages: The cut is made in so many parts, and what is left is ranked again after each.
        implant: Form of the implants: small stand-ins for the most sensitive of the units that would be pruned.
        ni_ratio: Share of the units that would be pruned that get an implant; `auto` chooses implants jointly with the
            widths, by what each would lose on calibration data.
        implant_rank: Rank of the forms low-rank, separable and tucker; null chooses one.
        implant_init: Where the weights of implants come from: fitted to data, the filters' own, or zero.
        blocks: `drop` lets whole residual blocks go where that is best; `keep` keeps them.
        structured: Settings of `structured-chita`.
    """

    floor: float = Field(default=0.1, ge=0.0, le=1.0)
    by: Literal["auto", "milp", "gain", "sensitivity", "structured-chita"] = "auto"
    ignore: list[str] = Field(default_factory=list)
    latency_margin: float = Field(default=0.03, ge=0.0, lt=1.0)
    latency_seconds: float = Field(default=45.0, gt=0.0)
    search_seconds: float = Field(default=60.0, gt=0.0)
    frontier: int = Field(default=0, ge=0)
    stages: int = Field(default=1, ge=1, le=20)
    implant: Literal["none", "pointwise", "low-rank", "separable", "tucker", "center"] = "none"
    ni_ratio: Annotated[float, Field(ge=0.0, le=1.0)] | Literal["auto"] = 0.1
    implant_rank: int | None = Field(default=None, ge=1)
    implant_init: Literal["least-squares", "center", "zeros"] = "least-squares"
    blocks: Literal["keep", "drop"] = "keep"
    structured: StructuredSettings = StructuredSettings()

    @property
    def jointly(self) -> str:
        """What is chosen jointly with the widths, as it is written in a recipe; "" if nothing is."""
        asked = ("ni_ratio: auto" if self.ni_ratio == "auto" else "", "blocks: drop" if self.blocks == "drop" else "")
        return " and ".join(key for key in asked if key)

    @model_validator(mode="after")
    def _everything_is_used(self) -> PlanSpec:
        """What a planner cannot do is refused, not left out in silence."""
        if self.ni_ratio == "auto" and self.implant in ("none", "center"):
            raise ValueError(
                "plan.ni_ratio: auto chooses how many implants there are; give their form: implant: pointwise"
            )
        if self.by != "structured-chita" and self.structured != StructuredSettings():
            raise ValueError(
                f"plan.structured is read by plan.by: structured-chita alone, not by {self.by}; take "
                "by: structured-chita, or leave plan.structured out"
            )
        idle = [
            name
            for name in ("ni_ratio", "implant_rank", "implant_init")
            if self.implant == "none" and getattr(self, name) != PlanSpec.model_fields[name].default
        ]
        if idle:
            names = ", ".join(f"plan.{name}" for name in idle)
            raise ValueError(f"{names}: there are no implants; give their form: implant: pointwise")
        if self.implant_rank is not None and self.implant not in RANKED:
            raise ValueError(
                f"plan.implant_rank: implants of the form {self.implant} have no rank; "
                f"leave it out, or take {', '.join(RANKED)}"
            )
        if self.jointly:
            for asked, key, remedy in (
                (self.by in ("gain", "sensitivity", "structured-chita"), f"by: {self.by}", "take by: auto"),
                (self.stages > 1, "stages", "set it to 1"),
                (self.frontier > 0, "frontier", "set it to 0"),
            ):
                if asked:
                    raise ValueError(f"plan.{self.jointly} cannot be planned with plan.{key}; {remedy}")
        if self.blocks == "drop" and self.implant != "none" and self.ni_ratio != "auto":
            raise ValueError("plan.blocks: drop chooses all at once; with implants, set plan.ni_ratio: auto")
        if self.by == "structured-chita":
            for asked, key, remedy in (
                (self.implant != "none", "implant", "leave it out, or take by: auto"),
                (self.stages > 1, "stages", "it has stages of its own: set plan.structured.stages"),
                (self.frontier > 0, "frontier", "set it to 0, or take by: milp"),
            ):
                if asked:
                    raise ValueError(f"structured-chita takes no plan.{key}; {remedy}")
        if self.frontier and self.implant != "none":
            raise ValueError("the frontier is one of plans without implants; leave out plan.frontier or plan.implant")
        return self


class QuantizeSpec(Section):
    """Post-training quantisation, and training on the INT8 grid.

    Attributes:
        samples: Calibration samples.
        observer: How activation ranges are chosen.
        qat: Settings of quantisation-aware training. Batch norm is folded by then: low rate, clipped gradient.
        when: `auto` trains only if post-training quantisation loses more than `tolerance`.
        tolerance: Accepted drop on the validation split, in points, before `auto` trains.
    """

    samples: int = Field(default=1024, ge=1)
    observer: Literal["mse", "minmax", "percentile"] = "mse"
    qat: TrainSettings = TrainSettings(epochs=1, lr=1e-4, clip_grad=1.0)
    when: Literal["auto", "always", "never"] = "auto"
    tolerance: float = Field(default=0.1, ge=0.0)


class Recipe(Section):
    """A whole recipe. Paths in it are absolute once it is loaded."""

    version: Literal[1] = 1
    model: ModelSpec
    data: DataSpec
    loss: str = "cross_entropy"
    metric: str = "top1"
    target: str = "ort-cpu"
    budget: Budget
    rank: RankSpec = RankSpec()
    plan: PlanSpec = PlanSpec()
    heal: HealSettings = HealSettings()
    quantize: QuantizeSpec = QuantizeSpec()
    engine: EngineSettings = EngineSettings()
    gates: Gates = Gates()
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, ge=1, le=MOST_THREADS)

    @field_validator("loss", "metric")
    @classmethod
    def _names_a_function(cls, text: str, info: ValidationInfo) -> str:
        known = NAMED[str(info.field_name)]
        if text not in known and not all(part for part in text.rpartition(":")):
            raise ValueError(
                f"{text!r} names no function{did_you_mean(text, known)}; write one of {', '.join(known)}, or "
                "package.module:function or path/to/file.py:function"
            )
        return text

    @field_validator("target")
    @classmethod
    def _known_target(cls, name: str) -> str:
        if name not in TARGETS:
            raise ValueError(f"unknown target {name!r}; there is: {', '.join(TARGETS)}")
        return name

    @model_validator(mode="after")
    def _interactions_are_used(self) -> Recipe:
        if self.plan.by == "structured-chita" and self.rank.options.get("interactions"):
            raise ValueError(
                "rank.interactions is not read by plan.by: structured-chita, which measures its own; leave it out"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _budget_becomes_gate(cls, raw: Any) -> Any:
        """A budget on latency, size or accuracy is a promise about the artifact, so it is also its gate."""
        if not isinstance(raw, dict):
            return raw
        budget = raw.get("budget")
        if not isinstance(budget, dict):
            return raw
        gates = raw.get("gates") or {}
        if not isinstance(gates, dict) or any(gate and not isinstance(gate, dict) for gate in gates.values()):
            return raw  # the types of the sections themselves are checked after this
        gates = dict(gates)
        promises = (("latency", "latency", "max"), ("size", "size", "max"), ("accuracy_drop", "accuracy", "max_drop"))
        for limit, gate, key in promises:
            if budget.get(limit) is not None:
                gates[gate] = {**(gates.get(gate) or {}), key: budget[limit]}
        return {**raw, "gates": gates}
