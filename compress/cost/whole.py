"""Whole networks as the runtime will get them, for timing and sizes alone: INT8 files need no data for that."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from ...errors import UnsupportedError
from ...export.latency import LatencyReport, make_feeds, measure
from ...export.layer_times import Profile, clock_for, time_kernels
from ...export.lower import lower_program
from ...export.ort_session import open_session
from ...export.targets import Target
from ...passes.program import Program
from ...passes.quant.modules import FakeQuantize
from ...passes.shapes import flatten_inputs
from ..quantize import prepare

_DECORATION = re.compile(r"(_token_\d+|_nchwc|_nhwc|/ConvActivationFusion/?|/MatMulAddFusion/?)+$")
_RANGE = 4.0


@dataclass(frozen=True)
class Network:
    """A network in the runtime's format.

    Attributes:
        program: The program that it was lowered from, before quantisation.
        model: The ONNX model.
        integer: Module paths of the layers that run on integer grids.
    """

    program: Program
    model: onnx.ModelProto
    integer: frozenset[str]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.model.ByteSize()


def float_network(program: Program, target: Target) -> Network:
    """The program in FP32, as the latency gate's baseline."""
    return Network(program, lower_program(program, target).model, frozenset())


def integer_network(program: Program, target: Target) -> Network:
    """The program on the target's integer grids, with ranges that fit no data: time and size do not depend on them.

    A program of which nothing can be quantised stays in FP32, as its artifact will.
    """
    try:
        prepared, _ = prepare(program, target.scheme)
    except UnsupportedError:
        return float_network(program, target)
    prepared = prepared.eval()
    integer = set()
    for path, module in prepared.graph_module.named_modules():
        if isinstance(module, FakeQuantize):
            module.set_range(0.0 if module.non_negative else -_RANGE, _RANGE)
        elif hasattr(module, "weight_quant"):
            integer.add(path)
    return Network(program, lower_program(prepared, target).model, frozenset(integer))


def measure_networks(
    networks: Mapping[str, Network],
    *,
    batches: Sequence[int],
    threads: int,
    seconds: float,
) -> LatencyReport:
    """Times networks side by side, with one thread by its own time; the first is the baseline.

    Args:
        networks: By name.
        batches: Batch sizes.
        threads: Threads of the runtime.
        seconds: Time for each batch size.
    """
    with tempfile.TemporaryDirectory(prefix="secateur-latency-") as folder:
        paths = {}
        for name, network in networks.items():
            paths[name] = Path(folder) / f"{name}.onnx"
            onnx.save(network.model, paths[name])
        inputs = _examples(next(iter(networks.values())))
        return measure(
            paths, inputs, batches=batches, threads=threads, budget_seconds=seconds, clock=clock_for(threads)
        )


def network_profile(network: Network, *, batch: int, threads: int) -> Profile:
    """Times of the kernels of a network, their names led back to those of the program's nodes where possible."""
    session = open_session(network.model, threads=threads)
    feeds = make_feeds(session, batch, _examples(network))
    profile = time_kernels(network.model, feeds, threads=threads)
    return Profile(tuple(replace(k, name=_node_name(k.name)) for k in profile.kernels), profile.between)


def _node_name(kernel: str) -> str:
    """The node that a kernel computes: what the runtime and the lowering appended is taken off."""
    name = _DECORATION.sub("", kernel)
    return name.partition("/")[0].removesuffix("_quantized")


def _examples(network: Network) -> dict[str, np.ndarray]:
    program = network.program
    tensors = flatten_inputs(program.graph_module, program.example_args, program.example_kwargs)
    arrays = [t.detach().cpu().numpy() for t in tensors if isinstance(t, Tensor)]
    return dict(zip((value.name for value in network.model.graph.input), arrays, strict=False))
