"""A runtime whose times are a formula: what plans on latency are tested against, without a clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from secateur.compress.cost.axes import sizes
from secateur.compress.cost.latency_table import LatencyTable, grid_points
from secateur.compress.cost.sites import layer_sites
from secateur.compress.cost.stopwatch import Share
from secateur.export.layer_model import LayerShape
from secateur.export.layer_times import Kernel, Profile, Timing

BETWEEN = 10.0


def blocks(shape) -> float:
    """Microseconds of a layer whose kernel computes 16 outputs at a time, and is slower off multiples of 16."""
    work = np.prod(shape.kernel or (1,)) * np.prod(shape.size or (1,)) * shape.inputs * shape.batch
    full, rest = divmod(shape.outputs, 16)
    return 1.0 + 1e-3 * work * (16 * full + (24 if rest else 0))


@dataclass
class FakeStopwatch:
    """Times layers by `alone`; inside a network they take `inside` times as long.

    Attributes:
        alone: Microseconds of a layer shape.
        inside: Factor inside a network, by node and shape; a plan cannot know it before it measures.
        mad: Noise that the table reports.
        batches: Batch sizes.
        measured: Networks that were measured.
    """

    alone: Callable = blocks
    inside: Callable = lambda node, shape: 1.0
    mad: float = 0.0
    batches: tuple = (4,)
    measured: list = field(default_factory=list)

    def layers(self, wanted):
        points = {}
        for family, pairs in wanted.items():
            for i, o in grid_points(np.concatenate(list(pairs))):
                timing = Timing(self.alone(replace(family, inputs=i, outputs=o)), self.mad, 100)
                points.setdefault(family, {})[i, o] = timing
        return LatencyTable(points)

    def shares(self, dense, network):
        """The dense FP32 network takes twice the time of the quantised one at full width."""
        self.measured.append(network)
        found = {}
        for batch in self.batches:
            base = 2 * self.micros(dense.program, network.integer, batch)
            share = self.micros(network.program, network.integer, batch) / base
            found[batch] = Share(share, share, share, base, share * base)
        return found

    def profile(self, network, batch):
        times = self._layer_times(network.program, network.integer, batch)
        kernels = [
            Kernel(node, "QLinearConcat" if node.startswith("cat") else "QLinearConv", Timing(time, self.mad, 100))
            for node, time in times.items()
        ]
        return Profile(tuple(kernels), Timing(BETWEEN, 0.0, 100))

    def micros(self, program, integer, batch):
        """True time of a program's quantised network."""
        return BETWEEN + sum(self._layer_times(program, integer, batch).values())

    def _layer_times(self, program, integer, batch):
        full = np.array([[group.width for group in program.groups]])
        times = {}
        for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.cat.default):
            first, second = (value.meta["val"].shape for value in node.args[0])
            axis = node.args[1] % len(first)
            size = tuple(first[1:axis]) + tuple(first[axis + 1 :])
            shape = LayerShape("concat", bool(integer), first[axis], second[axis], size, batch=batch)
            times[node.name] = self.alone(shape) * self.inside(node.name, shape)
        for site in layer_sites(program, integer):
            inputs, outputs = (int(sizes(axis, full)[0]) for axis in (site.inputs, site.outputs))
            shape = replace(site.family, batch=batch, inputs=inputs, outputs=outputs)
            times[site.node] = self.alone(shape) * self.inside(site.node, shape)
        return times
