"""Calibration: the ranges of a quantised program's activations, from what they are on data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import UserError
from ..passes.program import Program
from ..passes.quant.modules import FakeQuantize
from ..passes.shapes import eval_mode, flatten_inputs
from .data import Loader, empty_loader, split_batch
from .heal.device import device_of, to_device
from .observe import OBSERVERS, Histogram


def calibrate(
    program: Program,
    loader: Loader,
    *,
    samples: int = 1024,
    observer: str = "mse",
    progress: Callable[..., None] | None = None,
) -> Program:
    """Sets scale and zero point of every fake-quantiser.

    Values are observed with quantised weights and float activations. A grid that several nodes share is that of the
    first of them.

    Args:
        program: With fake-quantisers (see `passes.quant.insert`); stays as it is.
        loader: Calibration batches.
        samples: Stops after the batch that reaches this many.
        observer: `mse`, `minmax` or `percentile`; see `observe`.
        progress: Called as `progress(done, total)`, in samples.

    Returns:
        A new, calibrated program, in eval mode.

    Raises:
        UserError: The loader is empty, the observer is unknown, or a value is not finite.
    """
    if observer not in OBSERVERS:
        raise UserError(
            f"there is no observer {observer!r}",
            where="quantize.observer",
            hint=f"one of: {', '.join(OBSERVERS)}",
        )
    program = program.clone(step=f"calibrate:{observer}").eval()
    module = program.module()
    quantizers = {name: m for name, m in module.named_modules() if isinstance(m, FakeQuantize)}
    histograms = _observe(program, loader, samples, quantizers, progress)
    for name, quantizer in quantizers.items():
        grid, non_negative = quantizer.grid, quantizer.non_negative
        covered = OBSERVERS[observer](histograms[name], grid, non_negative=non_negative)
        quantizer.set_range(covered.low, covered.high)
    return program


def _observe(
    program: Program,
    loader: Loader,
    samples: int,
    quantizers: dict[str, FakeQuantize],
    progress: Callable[..., None] | None,
) -> dict[str, Histogram]:
    """Histograms of what the quantisers read, by their path."""
    module = program.module()
    device, seen = device_of(module), 0
    collector = _Collector(module, quantizers)
    for quantizer in quantizers.values():
        quantizer.enabled = False
    with eval_mode(module), torch.no_grad():
        for batch in loader:
            args, kwargs, _ = to_device(split_batch(batch), device)
            inputs = flatten_inputs(module, args, kwargs)
            collector.run(*inputs, enable_io_processing=False)
            seen += next((t.shape[0] for t in inputs if isinstance(t, Tensor) and t.ndim), 1)
            if progress:
                progress(min(seen, samples), samples)
            if seen >= samples:
                break
    for quantizer in quantizers.values():
        quantizer.enabled = True
    if seen == 0:
        raise empty_loader(loader, "calibration")
    return collector.histograms


class _Collector(fx.Interpreter):
    """Runs a program and counts the values that reach each quantiser at the first node that calls it."""

    def __init__(self, module: fx.GraphModule, quantizers: dict[str, FakeQuantize]) -> None:
        super().__init__(module)
        self.histograms = {name: Histogram() for name in quantizers}
        first: dict[str, fx.Node] = {}
        for node in module.graph.nodes:
            if node.op == "call_module" and node.target in quantizers:
                first.setdefault(str(node.target), node)
        self.observed = {node: name for name, node in first.items()}

    def run_node(self, n: fx.Node) -> Any:
        """Evaluates a node."""
        result = super().run_node(n)
        name = self.observed.get(n)
        if name is not None:
            if not torch.isfinite(result).all():
                raise UserError(
                    "a value is not finite during calibration",
                    where=n.name,
                    why="the data or the weights hold NaN or infinity, or an operation overflows",
                    hint="check the calibration data; evaluate the float model first",
                )
            self.histograms[name].add(result)
        return result
