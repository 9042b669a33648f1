"""The artifact under test, and the test data that it is fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from ..compress.data import MetricFn, split_batch
from ..errors import UserError
from ..export.artifact import PROGRAM_NAME, Artifact
from ..export.cpu import cpu_facts
from ..export.manifest import read_manifest
from ..export.session import open_model
from ..export.targets import TARGETS, Target
from ..export.tensorrt.device import find_device
from ..export.tensorrt.engine_file import PLAN_SUFFIX, engine_for
from ..gates import CheckFile
from ..inputs import METRICS, load_data, resolve
from ..passes.program import Program

Feeds = Mapping[str, np.ndarray]
"""Inputs of a session, by name."""


@dataclass
class Runner:
    """One ONNX file in onnxruntime, or one engine on its device.

    Args:
        path: The file.
        threads: Threads of the runtime.
        literal: Executes quantisation operators as they are written, without integer kernels.
        onnx_file: The network that an engine computes; None for an ONNX file.

    Raises:
        UserError: The runtime does not accept the file.
    """

    path: Path
    threads: int = 1
    literal: bool = False
    onnx_file: Path | None = None

    def __post_init__(self) -> None:
        self.runtime = "onnxruntime" if self.onnx_file is None else "TensorRT"
        try:
            self.session = open_model(self.path, threads=self.threads, literal=self.literal, onnx_file=self.onnx_file)
        except UserError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base
            raise UserError(
                f"{self.runtime} does not load the model", where=str(self.path), why=_first_line(error)
            ) from error

    def __call__(self, feeds: Feeds) -> list[np.ndarray]:
        """Runs one batch.

        Raises:
            UserError: The runtime rejects it.
        """
        try:
            return [np.asarray(output) for output in self.session.run(None, dict(feeds))]
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.runtime} rejects a batch",
                where=str(self.path),
                why=_first_line(error),
                hint="the test loader must yield the shapes and types that the model was captured with",
            ) from error

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in the model's order."""
        return [value.name for value in self.session.get_inputs()]


@dataclass
class Subject:
    """The artifact under test.

    Attributes:
        directory: The artifact's directory.
        check: The gates, and where the data comes from.
        base_dir: What relative factories are relative to.
    """

    directory: Path
    check: CheckFile
    base_dir: Path
    _runners: dict[tuple[str, bool], Runner] = field(default_factory=dict)

    @cached_property
    def artifact(self) -> Artifact:
        """The artifact; whether its files are those of the manifest is for the legality gate to say."""
        return Artifact(self.directory, read_manifest(self.directory))

    @property
    def model(self) -> Path:
        """The model's ONNX file.

        Raises:
            UserError: The artifact has none.
        """
        if not self.artifact.model.is_file():
            raise UserError("the artifact holds no model", where=str(self.artifact.model), hint="export again")
        return self.artifact.model

    @property
    def dense(self) -> Path | None:
        """The dense FP32 baseline, or None if the artifact was exported without one."""
        path = self.artifact.dense
        return path if path is not None and path.is_file() else None

    @cached_property
    def target(self) -> Target | None:
        """The target of the artifact; None if this version does not know it."""
        return TARGETS.get(str(self.artifact.manifest.get("target")))

    @property
    def for_device(self) -> bool:
        """Whether the artifact is for something other than this processor."""
        return self.target is not None and self.target.device != "cpu"

    @cached_property
    def unverified(self) -> str:
        """Why the artifact is not run on the device that it is for; empty if it is."""
        if not self.for_device:
            return ""
        device = find_device()
        if device is None:
            return "not verified on device: there is no CUDA device here"
        try:
            engine_for(self.engine(self.model), self.model, device)
        except UserError as error:
            return f"not verified on device: {error.what}" + (f" ({error.why})" if error.why else "")
        return ""

    def engine(self, path: Path) -> Path:
        """Where the engine of an ONNX file lies."""
        return path.with_suffix(PLAN_SUFFIX)

    def runnable(self, path: Path) -> Path | None:
        """What runs an ONNX file of the artifact where it is meant to: itself, or its engine. None without engine."""
        if not self.for_device:
            return path
        plan = self.engine(path)
        return plan if plan.is_file() and not self.unverified else None

    @property
    def has_program(self) -> bool:
        """The artifact holds the torch program that it was exported from."""
        return (self.directory / PROGRAM_NAME).is_dir()

    @cached_property
    def program(self) -> Program:
        """The fake-quantised torch program that the model was exported from.

        Raises:
            UserError: The artifact has none.
        """
        if not self.has_program:
            raise UserError(
                "the artifact holds no program to compare with",
                where=str(self.directory / PROGRAM_NAME),
                hint="export again, or set parity: null",
            )
        return self.artifact.program().eval()

    @cached_property
    def metric(self) -> MetricFn:
        """The metric, one score a sample."""
        return resolve(self.check.metric, METRICS, key="metric")

    def runner(self, path: Path, *, literal: bool = False) -> Runner:
        """The session of a file, opened once: on the artifact's device if there is one, else on the CPU.

        Args:
            path: The ONNX file.
            literal: On the CPU, executing quantisation operators as they are written.
        """
        key = (path.name, literal)
        if key not in self._runners:
            plan = self.runnable(path) if self.for_device and not literal else None
            # A file in the dialect of another runtime says what it means only when it is taken literally.
            as_written = literal or (self.for_device and path == self.model)
            # Only latency depends on the number of threads, and its gate opens sessions of its own.
            self._runners[key] = (
                Runner(path, cpu_facts()["cores"], as_written) if plan is None else Runner(plan, onnx_file=path)
            )
        return self._runners[key]

    def batches(self) -> Iterator[tuple[tuple[Any, ...], Mapping[str, Any], Any]]:
        """Positional inputs, keyword inputs and target of every test batch.

        Raises:
            UserError: There is no data, or no batch in it.
        """
        empty = True
        for batch in self._test_loader:
            empty = False
            yield split_batch(batch)
        if empty:
            raise UserError("the test loader yields no batch", where="data.factory", hint="check the data path")

    def feeds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Feeds:
        """A batch as inputs of the model's session: keywords by name, everything else in order.

        Raises:
            UserError: The batch has another number of tensors than the model has inputs.
        """
        names = self.runner(self.model).input_names
        by_name = {name: value for name, value in kwargs.items() if name in names and isinstance(value, torch.Tensor)}
        rest = {name: value for name, value in kwargs.items() if name not in by_name}
        leaves = [leaf for leaf in _pytree.tree_leaves((args, rest)) if isinstance(leaf, torch.Tensor)]
        free = [name for name in names if name not in by_name]
        if len(leaves) != len(free):
            raise UserError(
                f"a test batch holds {len(leaves) + len(by_name)} input tensors, the model takes {len(names)}",
                where="data.factory",
                why=f"inputs of the model: {', '.join(names)}",
                hint="the test loader must yield what the model was captured with",
            )
        return {name: t.detach().cpu().numpy() for name, t in (by_name | dict(zip(free, leaves, strict=True))).items()}

    def example_feeds(self) -> Feeds | None:
        """Some inputs of the model: sizes and values that its signature does not tell. None if there are none."""
        if self.has_program:
            return self.feeds(self.program.example_args, self.program.example_kwargs)
        if self.check.data is not None:
            args, kwargs, _ = next(self.batches())
            return self.feeds(args, kwargs)
        return None

    def structured(self, outputs: list[np.ndarray]) -> Any:
        """Outputs of the session in the form in which the model returns them, as tensors."""
        tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in outputs]
        spec = self._output_spec
        if spec is not None and spec.num_leaves == len(tensors):
            return _pytree.tree_unflatten(tensors, spec)
        return tensors[0] if len(tensors) == 1 else tuple(tensors)

    def scores(self, runner: Runner, feeds: Feeds, target: Any) -> np.ndarray:
        """The metric of each sample of a batch.

        Raises:
            UserError: The metric fails, or does not give one score a sample.
        """
        batch = next(iter(feeds.values())).shape[0]
        try:
            scores = np.asarray(self.metric(self.structured(runner(feeds)), target).detach().cpu(), dtype=np.float64)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the metric failed: {type(error).__name__}: {_first_line(error)}", where=f"metric {self.check.metric}"
            ) from error
        if scores.shape != (batch,):
            raise UserError(
                f"the metric gave shape {list(scores.shape)} for a batch of {batch}",
                where=f"metric {self.check.metric}",
                hint="return one score a sample, higher is better",
            )
        return scores

    @cached_property
    def _test_loader(self) -> Any:
        if self.check.data is None:
            raise UserError(
                "no test data was given",
                where="data",
                hint="name a data factory (`data: {factory: module:function}`), or set this gate to null",
            )
        return load_data(self.check.data.anchored(self.base_dir)).test

    @cached_property
    def _output_spec(self) -> Any:
        return _pytree.tree_structure(self.program.run_example()) if self.has_program else None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
