"""Settings of structured-chita, as a recipe gives them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class StructuredSettings(BaseModel):
    """How units are chosen jointly; see `structured.structured_chita`.

    Attributes:
        search: `swap` removes greedily and then exchanges units and steps; `iht` is iterative hard thresholding.
        model: `layers` lets whole layers make up for what goes, weighed by what their errors do to the network's
            outputs; `relative` weighs every layer's error alike, as a share; `gates` has one factor a unit.
        curvature: What errors are weighed with: the squared change of the network's `outputs`, or the `loss`.
        stages: How often the model is made anew, with the network rewritten and refitted in between.
        samples: Calibration samples that each stage reads.
        ridge: Pull towards the old weights, relative to the data's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    search: Literal["swap", "iht"] = "swap"
    model: Literal["layers", "relative", "gates"] = "layers"
    curvature: Literal["outputs", "loss"] = "outputs"
    stages: int = Field(default=4, ge=1)
    samples: int = Field(default=512, ge=2)
    ridge: float = Field(default=1e-3, gt=0.0)
