"""How an engine is built: the choices that are a person's, not the network's."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

Shape = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=0)]


class Profile(BaseModel):
    """Sizes of one input for which kernels are chosen.

    Attributes:
        min: Smallest shape.
        best: The shape that kernels are chosen for.
        max: Largest shape.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    min: Shape
    best: Shape
    max: Shape

    @field_validator("max")
    @classmethod
    def _in_order(cls, largest: tuple[int, ...], info: object) -> tuple[int, ...]:
        smaller = [shape for shape in getattr(info, "data", {}).values() if isinstance(shape, tuple)]
        for low, high in zip(smaller, (*smaller[1:], largest), strict=True):
            if len(low) != len(high) or any(a > b for a, b in zip(low, high, strict=True)):
                raise ValueError("min, best and max must have one rank and grow along every axis")
        return largest


class EngineSettings(BaseModel):
    """How an engine is built.

    Attributes:
        batch: Smallest, best and largest batch size of a dynamic axis 0.
        profiles: Shapes of inputs with further dynamic axes, by name; they replace `batch` for those inputs.
        capabilities: Compute capabilities, such as "8.6"; only TensorRT-RTX builds for a list.
        workspace_mib: Scratch memory that kernels may take, in MiB; the library's own limit if None.
        sparse: Allows 2:4 sparse kernels; weights have to keep the pattern (`secateur sparsify`).
        tf32: Rounds FP32 matrix products to TF32.
        optimization_level: 0 (quick build) to 5 (quick engine); the library's own if None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 8, 32)
    profiles: dict[str, Profile] = Field(default_factory=dict)
    capabilities: tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...] | None = None
    workspace_mib: int | None = Field(default=None, ge=1)
    sparse: bool = False
    tf32: bool = False
    optimization_level: int | None = Field(default=None, ge=0, le=5)

    @field_validator("batch")
    @classmethod
    def _grows(cls, batch: tuple[int, int, int]) -> tuple[int, int, int]:
        if list(batch) != sorted(batch):
            raise ValueError("give the smallest, the best and the largest batch size, in this order")
        return batch

    @field_validator("capabilities")
    @classmethod
    def _each_once(cls, capabilities: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if capabilities is not None and (not capabilities or len(set(capabilities)) != len(capabilities)):
            raise ValueError("give at least one compute capability, each once")
        return capabilities
