"""The truth of ranking: the loss when each unit is really removed, with and without batch norm re-estimated.

A gate at zero computes what the physically smaller network computes, so nothing is rewritten: the values in front of
the first layer that reads a group are computed once, and for every unit only the rest of the network runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from secateur.passes.gates import Gate, Gated, insert_gates
from secateur.passes.program import Program

VARIANTS = ("re-estimated", "kept")
"""Batch norm's statistics: those of the network without the unit on the same samples, or those of the dense network."""

FOLDS = 8
"""The samples are cut into so many equal parts, whose losses are stored apart; the second half are test images."""


@dataclass(frozen=True)
class Truth:
    """Loss and accuracy without each unit.

    Attributes:
        names: Groups, in the order of the units.
        widths: Their widths.
        loss: float64 [units + 1, variants, folds]; the last row is the dense network; NaN was not measured.
        hits: Share of samples classified right, like `loss`.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    loss: np.ndarray
    hits: np.ndarray

    def rise(self, variant: str, part: str = "all", half: int | None = None) -> np.ndarray:
        """Rise of the mean loss when a unit is removed, [units]; NaN where it was not measured.

        Args:
            variant: One of `VARIANTS`.
            part: `train` (augmented training images), `test`, or `all`.
            half: Only every second fold, from this one on.
        """
        every = self.loss.shape[2]
        folds = {"train": range(every // 2), "test": range(every // 2, every), "all": range(every)}[part]
        chosen = list(folds if half is None else folds[half::2])
        mean = self.loss[:, VARIANTS.index(variant), chosen].mean(1)
        return mean[:-1] - mean[-1]

    @property
    def complete(self) -> np.ndarray:
        """Which units were measured: bool [units]."""
        return np.isfinite(self.loss[:-1]).all((1, 2))

    def save(self, path: Path, about: dict[str, Any]) -> None:
        """Writes an npz, whole or not at all."""
        partial = path.with_suffix(".partial.npz")
        header = json.dumps({**about, "names": self.names, "widths": self.widths})
        np.savez_compressed(partial, loss=self.loss, hits=self.hits, header=np.array(header))
        partial.replace(path)

    @staticmethod
    def load(path: Path) -> tuple[Truth, dict[str, Any]]:
        """Reads what `save` wrote, and what it was measured on."""
        with np.load(path) as file:
            header = json.loads(str(file["header"]))
            names, widths = tuple(header.pop("names")), tuple(header.pop("widths"))
            return Truth(names, widths, file["loss"], file["hits"]), header


def merge(paths: Sequence[Path]) -> tuple[Truth, dict[str, Any]]:
    """Joins what was measured on different samples; files that lack units which the first one has are left out.

    Raises:
        FileNotFoundError: There is no first file.
    """
    first, about = Truth.load(paths[0])
    found = [first]
    for path in paths[1:]:
        truth = Truth.load(path)[0] if path.exists() else None
        if truth is not None and bool((truth.complete >= first.complete).all()):
            found.append(truth)
    half = FOLDS // 2

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([a[..., :half] for a in arrays] + [a[..., half:] for a in arrays], axis=2)

    joined = Truth(first.names, first.widths, join([t.loss for t in found]), join([t.hits for t in found]))
    return joined, {**about, "samples": about["samples"] * len(found)}


def prunable(program: Program) -> list[Any]:
    """The groups that estimators score."""
    return [group for group in program.groups if group.frozen is None and group.producers]


def measure(
    program: Program,
    images: Tensor,
    labels: Tensor,
    path: Path,
    *,
    subset: int | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> Truth:
    """Removes every unit, one at a time; continues what an earlier call left in `path`.

    Args:
        program: The trained network: one input, logits out.
        images: Samples, their number divisible by `FOLDS`: augmented training images, then as many test images. Batch
            norm is re-estimated on the former; on images that are not augmented its statistics are others.
        labels: int64 [samples].
        path: Where the result is kept; written after every group.
        subset: Only so many units, drawn at random over all groups.
        seed: Of the draw.
        progress: Told how far it is.
    """
    groups = prunable(program)
    units = sum(group.width for group in groups)
    about = {"samples": len(labels), "subset": subset, "seed": seed, "torch": str(torch.__version__)}
    truth = Truth(
        tuple(group.name for group in groups),
        tuple(group.width for group in groups),
        np.full((units + 1, len(VARIANTS), FOLDS), np.nan),
        np.full((units + 1, len(VARIANTS), FOLDS), np.nan),
    )
    if path.exists():
        truth, found = Truth.load(path)
        if found != about or truth.names != tuple(group.name for group in groups):
            raise SystemExit(f"{path} was measured on something else: {found}, not {about}; choose another --out")
    chosen = np.arange(units)
    if subset is not None and subset < units:
        chosen = np.sort(np.random.default_rng(seed).choice(units, subset, replace=False))
    todo = chosen[~truth.complete[chosen]]
    done, began = 0, time.perf_counter()
    with torch.no_grad():
        for number, variant in enumerate(VARIANTS):
            network = Network(insert_gates(program), variant == "re-estimated", images.chunk(FOLDS), labels)
            if np.isnan(truth.loss[-1, number]).any():
                truth.loss[-1, number], truth.hits[-1, number] = network.without(network.prefix(None), None)
            start = 0
            for group in groups:
                here = todo[(todo >= start) & (todo < start + group.width)]
                here = here[np.isnan(truth.loss[here, number]).any(1)]
                first = network.gated.groups[group.name][0]
                prefix = network.prefix(first if len(here) else None)
                for unit in here:
                    result = network.without(prefix, first + int(unit) - start)
                    truth.loss[unit, number], truth.hits[unit, number] = result
                start += group.width
                done += len(here)
                if len(here):
                    truth.save(path, about)
                    left = (time.perf_counter() - began) / done * (2 * len(todo) - done)
                    progress(f"{path.stem}, {variant}, {group.name}: {done}/{2 * len(todo)}, about {left:.0f} s left")
    return truth


@dataclass(frozen=True)
class _Prefix:
    """Values that the rest of the network reads, a dict for each fold; `start` is the first node of the rest."""

    start: int
    folds: Sequence[dict[fx.Node, Tensor]]


@dataclass(frozen=True)
class Network:
    """A gated network on fixed samples.

    Attributes:
        gated: In evaluation mode.
        fresh: Whether batch norm takes its statistics from the first half of the samples, as it would if they were
            re-estimated there, layer by layer; else it keeps those of training.
        folds: The samples.
        labels: int64 [samples].
    """

    gated: Gated
    fresh: bool
    folds: Sequence[Tensor]
    labels: Tensor

    def prefix(self, first: int | None) -> _Prefix:
        """Everything in front of the first gate of a group, whose first unit is given; None: nothing."""
        nodes = list(self.gated.module.graph.nodes)
        start = 1 if first is None else next(i for i, node in enumerate(nodes) if self._reads(node, first))
        envs = [{nodes[0]: fold} for fold in self.folds]
        self._run(nodes[1:start], nodes[start:], envs, None)
        return _Prefix(start, envs)

    def logits(self, prefix: _Prefix, unit: int | None) -> Tensor:
        """Logits [samples, classes] without a unit (without nothing, if None)."""
        nodes = list(self.gated.module.graph.nodes)[prefix.start :]
        envs = [dict(env) for env in prefix.folds]
        self._run(nodes, [], envs, unit)
        return torch.cat([pytree.tree_leaves(env[nodes[-1]])[0] for env in envs])

    def without(self, prefix: _Prefix, unit: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Loss and share of hits of every fold without a unit (of nothing, if None)."""
        output = self.logits(prefix, unit)
        loss = F.cross_entropy(output.double(), self.labels, reduction="none")
        hits = (output.argmax(1) == self.labels).double()
        return loss.reshape(FOLDS, -1).mean(1).numpy(), hits.reshape(FOLDS, -1).mean(1).numpy()

    def _run(
        self, nodes: Sequence[fx.Node], later: Sequence[fx.Node], envs: list[dict[fx.Node, Any]], unit: int | None
    ) -> None:
        """Runs nodes on all folds, each before the next; drops values after their last use."""
        interpreter = fx.Interpreter(self.gated.module.eval())
        last = {value: node for node in (*nodes, *later) for value in node.all_input_nodes}
        gates = torch.ones(1, self.gated.units)
        if unit is not None:
            gates[0, unit] = 0.0
        for node in nodes:
            self.gated.source.values = gates if unit is not None and self._reads(node, unit) else None
            norm = self._norm(node)
            if norm is not None:
                outputs = _renormalise(norm, [env[node.args[0]] for env in envs])
            else:
                outputs = []
                for env in envs:
                    interpreter.env = env
                    outputs.append(interpreter.run_node(node))
            for env, output in zip(envs, outputs, strict=True):
                env[node] = output
                for value in node.all_input_nodes:
                    if last[value] is node:
                        del env[value]
        self.gated.source.values = None

    def _norm(self, node: fx.Node) -> _BatchNorm | None:
        """The batch norm that takes fresh statistics here, if any."""
        layer = self.gated.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        return layer if self.fresh and isinstance(layer, _BatchNorm) else None

    def _reads(self, node: fx.Node, unit: int) -> bool:
        """Whether a node is a gate of this unit."""
        if node.op != "call_module":
            return False
        gate = self.gated.module.get_submodule(str(node.target))
        return isinstance(gate, Gate) and bool((gate.units[gate.gated] == unit).any())


def _renormalise(norm: _BatchNorm, folds: Sequence[Tensor]) -> list[Tensor]:
    """Batch norm with the population statistics of the first half of the folds, all of one size."""
    moments = [torch.var_mean(x.transpose(0, 1).flatten(1), dim=1, correction=0) for x in folds[: len(folds) // 2]]
    variances, means = (torch.stack(moment).double() for moment in zip(*moments, strict=True))
    mean, variance = means.mean(0).float(), (variances.mean(0) + means.var(0, correction=0)).float()
    return [F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps) for x in folds]
