"""The public functions, one for each arrow of the data flow; thin, so that the rooms below stay free of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .arguments import expect, expect_given, expect_loaders
from .compress.budget import Budget
from .compress.cost.stopwatch import OrtStopwatch
from .compress.data import Loader, LossFn, MetricFn
from .compress.heal.evaluate import cross_entropy, top1
from .compress.heal.heal import heal as _heal
from .compress.heal.settings import HealSettings, TrainSettings
from .compress.implants.apply import apply_plan as _apply_plan
from .compress.implants.apply import mask_plan as _mask_plan
from .compress.implants.fit import fit_implants as _fit_implants
from .compress.plan import Plan
from .compress.planner.plan import plan as _plan
from .compress.quantize import quantize as _quantize
from .compress.sensitivity.rank import rank as _rank
from .compress.sensitivity.table import Sensitivity
from .compress.sensitivity.verify import Verification
from .compress.sensitivity.verify import verify_ranking as _verify_ranking
from .export.targets import Target, find_target
from .passes.capture import capture as _capture
from .passes.mask import mask as _mask
from .passes.program import Program
from .passes.prune import apply as _apply
from .unread import idle_in_ridge, ridge_trains_nothing
from .validation import settings_of

Keep = Mapping[str, Sequence[int]]


def capture(
    model: nn.Module,
    example_inputs: Any,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic: Mapping[str, Sequence[int]] | None = None,
) -> Program:
    """Captures a model as a program; the model itself is not touched.

    Args:
        model: A trained model.
        example_inputs: A tensor, a tuple of positional inputs or a dict of keyword inputs; batch in axis 0.
        example_kwargs: Further keyword inputs.
        dynamic: Axes besides the batch that may change their length, by argument: `{"input_ids": [1]}`.

    Raises:
        UnsupportedError: `torch.export` cannot capture it.
        UserError: A weight is NaN or infinite.
    """
    return _capture(model, example_inputs, example_kwargs=example_kwargs, dynamic=dynamic)


def rank(
    program: Program,
    loader: Loader | None = None,
    loss: LossFn | None = None,
    *,
    method: str = "gate-ggn",
    **options: Any,
) -> Sensitivity:
    """Estimates for every unit how much the loss rises if it is removed.

    Args:
        program: The program.
        loader: Yields `(inputs, target)`; may be None for methods that need no data.
        loss: `loss(output, target)`, a scalar mean; cross entropy if None.
        method: Name of the estimator.
        options: `samples`, `probes`, `seed`, `progress`, and options of the method itself.
    """
    expect_given("rank", Program, program=program)
    expect_loaders("rank", loader=loader)
    return _rank(program, loader, loss or cross_entropy, method=method, **options)


def verify_ranking(
    program: Program, table: Sensitivity, loader: Loader, loss: LossFn | None = None, *, units: int = 30, **options: Any
) -> Verification:
    """Removes units for real, one at a time, and compares the rise of the loss with their scores.

    Args:
        program: The program that was ranked.
        table: What `rank` returned.
        loader: The loader of the ranking.
        loss: The loss of the ranking; cross entropy if None.
        units: How many units are drawn at random.
        options: `samples`, `batch_norm` ("kept" or "reestimated"), `seed`, `progress`.
    """
    expect_given("verify_ranking", Program, program=program)
    expect_given("verify_ranking", Sensitivity, table=table)
    expect_loaders("verify_ranking", loader=loader)
    return _verify_ranking(program, table, loader, loss or cross_entropy, units=units, **options)


def plan(
    program: Program,
    table: Sensitivity,
    *,
    target: str | Target = "ort-cpu",
    budget: Budget,
    batches: Sequence[int] = (1, 32),
    threads: int = 1,
    **options: Any,
) -> Plan:
    """Decides how many units every group keeps, so that the budgets hold at the least predicted rise of the loss.

    Args:
        program: The program.
        table: What `rank` returned.
        target: Chooses the width grid, and what latency is measured with.
        budget: Limits on latency, parameters, multiply-accumulates, size and activation memory.
        batches: Batch sizes at which a latency budget holds.
        threads: Threads of the runtime when latency is measured.
        options: `floor`, `by`, `ignore`, `latency_margin`, `seconds`, `note`; `implants` and `blocks` to choose from.

    Raises:
        BudgetError: The budgets cannot be met; names the nearest that can.
    """
    expect_given("plan", Program, program=program)
    expect_given("plan", Sensitivity, table=table)
    expect_given("plan", Budget, budget=budget)
    chosen = find_target(target)
    if budget.latency is not None and "stopwatch" not in options:
        options["stopwatch"] = OrtStopwatch(chosen, batches=tuple(batches), threads=threads)
    return _plan(program, table, target=chosen, budget=budget, **options)


def apply(program: Program, plan: Plan | Keep, **options: Any) -> Program:
    """Removes what the plan does not keep, and puts its implants in place; a pure function of the two.

    Implants start with what the filters themselves say (or with zeros); `fit_implants` fits them to data.

    Args:
        program: The program.
        plan: A plan, or the kept units by group name.
        options: `allow_unchanged` accepts a plan that removes nothing.
    """
    expect_given("apply", Program, program=program)
    if not isinstance(plan, Mapping):
        expect_given("apply", Plan, plan=plan)
    if isinstance(plan, Plan):
        plan.check(program)
        return _apply_plan(program, plan, **options).program
    return _apply(program, plan, **options)


def fit_implants(program: Program, plan: Plan, loader: Loader, **options: Any) -> Program:
    """As `apply`, with the plan's implants fitted by least squares to what their filters compute on data.

    Args:
        program: The program.
        plan: A plan with implants.
        loader: Batches; only the inputs are used.
        options: `samples`, `ridge`, `seed`, `progress`.
    """
    expect_given("fit_implants", Program, program=program)
    expect_given("fit_implants", Plan, plan=plan)
    expect_loaders("fit_implants", loader=loader)
    plan.check(program)
    return _fit_implants(program, _apply_plan(program, plan, allow_unchanged=True), loader, **options)


def mask(program: Program, plan: Plan | Keep) -> Program:
    """Silences what the plan does not keep and replaces implanted filters, at full size: the oracle of `apply`."""
    expect_given("mask", Program, program=program)
    if not isinstance(plan, Mapping):
        expect_given("mask", Plan, plan=plan)
    if isinstance(plan, Plan):
        plan.check(program)
        return _mask_plan(program, plan)
    return _mask(program, plan)


def heal(
    program: Program,
    loader: Loader,
    loss: LossFn | None = None,
    *,
    teacher: Program | None = None,
    plan: Plan | None = None,
    validation: Loader | None = None,
    metric: MetricFn = top1,
    progress: Any = None,
    **settings: Any,
) -> Program:
    """Repairs the network in closed form, then fine-tunes it (with distillation if there is a teacher).

    Args:
        program: What `apply` returned.
        loader: Training batches.
        loss: Cross entropy if None.
        teacher: The dense program.
        plan: The plan by which `program` was made from `teacher`; for the methods `ridge` and `both`.
        validation: Chooses the start and the best epoch.
        metric: One score per sample.
        progress: Called as `progress(done, total, **info)`.
        settings: Fields of `HealSettings` (`epochs`, `lr`, …).

    Raises:
        UserError: A setting is unknown, cannot be used or would do nothing, or the method needs a teacher and a plan.
    """
    expect_given("heal", Program, program=program)
    expect("heal", Program, teacher=teacher)
    expect("heal", Plan, plan=plan)
    expect_loaders("heal", loader=loader, validation=validation)
    idle = idle_in_ridge(settings)
    if idle:
        raise ridge_trains_nothing(idle, where="heal")
    result = _heal(
        program,
        loader,
        loss or cross_entropy,
        teacher=teacher,
        keep=plan.keep() if plan is not None else None,
        implants=plan.implants() if plan is not None else None,
        settings=settings_of(HealSettings, settings, where="heal"),
        validation=validation,
        metric=metric,
        progress=progress,
    )
    return result.program


def quantize(
    program: Program,
    loader: Loader,
    *,
    target: str | Target = "ort-cpu",
    qat: TrainSettings | None = None,
    train: Loader | None = None,
    loss: LossFn | None = None,
    **options: Any,
) -> Program:
    """Folds batch norm and puts the program on the target's INT8 grid.

    Args:
        program: What `heal` returned.
        loader: Calibration batches.
        target: Chooses the grid and where it applies.
        qat: Trains on the grid with these settings; None only calibrates.
        train: Training batches for `qat`; the calibration batches if None.
        loss: Cross entropy if None.
        options: `samples`, `observer`, `teacher`, `validation`, `metric`, `progress`.
    """
    expect_given("quantize", Program, program=program)
    expect("quantize", Program, teacher=options.get("teacher"))
    expect("quantize", TrainSettings, qat=qat)
    expect_loaders("quantize", loader=loader, train=train, validation=options.get("validation"))
    result = _quantize(
        program,
        loader,
        scheme=find_target(target).scheme,
        qat=qat,
        train=train,
        loss=loss or cross_entropy,
        **options,
    )
    return result.program
