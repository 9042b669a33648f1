"""Settings of unstructured and N:M sparsity."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .chita.data_matrix import Storage
from .chita.schedule import Schedule
from .chita.solve import Solver

Method = Literal["reconstruct", "magnitude", "woodfisher", "cbs", "m-fac", "chita-bso", "chita-cd", "chita", "chita++"]


class SparsifySettings(BaseModel):
    """What is asked for.

    Attributes:
        method: `reconstruct` refits layers to those of the dense network, in stages. `chita-bso`, `chita-cd` and
            `chita` solve once (support of the largest weights and exact weights, the same by coordinate descent, and
            support by thresholding); `chita++` does so in stages. The others are baselines.
        sparsity: Share of the weights of convolutions and linear layers that become zero.
        scope: `global` shares the zeros out over layers, `layer` takes the same share of each.
        pattern: `N:M` along the input channels, `2:4` for sparse tensor cores; the sparsity then follows from it.
        block: Whole blocks of so many output times input channels.
        macs: Share of multiply-adds to keep, besides the sparsity.
        ignore: Patterns of names of weights that stay as they are.
        samples: Rows of the data matrix, n.
        batch_size: Samples of a row, m.
        model: What is linearised: the `loss` (its Fisher and gradient), or the `outputs`, which are pulled towards
            those of the dense network (CHITA methods; no labels).
        ridge: λ; `auto` takes what gives the least loss on `holdout` training samples.
        holdout: Training samples for `auto`, apart from those of the first stage.
        first_order: Weight α of the gradient, or `auto`: a multiple of λ, chosen with it. None is `auto` for `chita++`,
            and 0 for the others, which take one step from a minimum.
        stages: Of `reconstruct`, `chita++` and `m-fac`; None is 4, 15 and 16.
        solver: Of a stage of `chita++`.
        schedule: Of the stages; None is `poly`, for `m-fac` `geometric`.
        start: Sparsity of the first stage.
        block_size: Makes the Fisher block-diagonal; None is whole (for `woodfisher` at most 12288).
        storage: Where the gradients are held; `auto` decides by memory.
        folder: For `disk`; the system's temporary folder if None.
        batch_norm: Statistics are `kept`, or re-estimated after the last (`end`) or every (`stages`) stage. None is
            `kept` where layers are refitted, to whose targets they belong, and `end` otherwise.
        refit: `layers` solves, after every stage, layer by layer for the weights that remain, so that each layer comes
            as near as it can to what it computes in the dense network (`heal.ridge.reconstruct`); `none` does not. None
            is `layers` for `reconstruct` alone.
        refit_samples: Samples that it reads.
        seed: Of what is drawn at random (`cbs`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: Method = "reconstruct"
    sparsity: float = 0.7
    scope: Literal["global", "layer"] = "global"
    pattern: str | None = None
    block: tuple[int, int] | None = None
    macs: float | None = None
    ignore: tuple[str, ...] = ()
    samples: int = Field(default=1000, ge=2)
    batch_size: int = Field(default=1, ge=1)
    model: Literal["loss", "outputs"] = "loss"
    ridge: float | Literal["auto"] = "auto"
    holdout: int = Field(default=512, ge=1)
    first_order: Annotated[float, Field(ge=0.0)] | Literal["auto"] | None = None
    stages: int | None = Field(default=None, ge=1)
    solver: Solver = "bso"
    schedule: Schedule | None = None
    start: float = Field(default=0.2, ge=0.0, lt=1.0)
    block_size: int | None = Field(default=None, ge=1)
    storage: Storage = "auto"
    folder: str | None = None
    batch_norm: Literal["kept", "end", "stages"] | None = None
    refit: Literal["none", "layers"] | None = None
    refit_samples: int = Field(default=1024, ge=1)
    seed: int = Field(default=0, ge=0)
