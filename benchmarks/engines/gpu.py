"""What only a GPU can answer: times of engines and their alternatives, and of second derivatives in half precision."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

import secateur as sc
from secateur.errors import UserError
from secateur.examples.cifar_resnet import resnet20
from secateur.export.latency import measure

from .build import Row
from .networks import Network, settle


def time_engines(rows: Sequence[Row], network: Network, batches: Sequence[int], seconds: float) -> Iterator[str]:
    """Lines of a table: paired and interleaved times of a network's engines; FP32 is the baseline."""
    yield from _timed({row.form: row.plan for row in rows}, network, "", batches, seconds, "cpu")


def time_providers(rows: Sequence[Row], network: Network, batches: Sequence[int], seconds: float) -> Iterator[str]:
    """Lines of a table: the same ONNX files in onnxruntime, by each of its providers for NVIDIA's GPUs."""
    paths = {row.form: row.plan.with_suffix(".onnx") for row in rows}
    for provider in ("cuda", "tensorrt", "tensorrt-rtx"):
        yield from _timed(paths, network, f"onnxruntime {provider} ", batches, seconds, provider)


def _timed(
    paths: Mapping[str, Path], network: Network, prefix: str, batches: Sequence[int], seconds: float, provider: str
) -> Iterator[str]:
    inputs = network.inputs(1)
    examples = None if inputs.is_floating_point() else {"ids": inputs.numpy()}
    try:
        report = measure(paths, examples, batches=batches, budget_seconds=seconds, provider=provider)
    except UserError as error:  # such as an engine that this GPU does not run
        why = f"{error.what} ({error.why})" if error.why else error.what
        yield f"| {network.name} | {prefix}| not run: {why} | | | | |"
        return
    for entry in report.batches:
        for form, found in entry.models.items():
            ratio = found.speedup
            times = f"{found.median:.4g} | {found.p90:.4g} | {found.p99:.4g}"
            yield (
                f"| {network.name} | {prefix}{form} | {entry.batch} | {times} "
                f"| {ratio.median:.3g} ({ratio.low:.3g} to {ratio.high:.3g}) |"
            )


def time_compiled(network: Network, batches: Sequence[int], rounds: int = 50) -> Iterator[str]:
    """Lines of a table: the same network by `torch.compile`, in FP32 and FP16."""
    module = settle(network.make(), network.inputs(network.samples)).cuda()
    for name, dtype in (("FP32", torch.float32), ("FP16", torch.float16)):
        compiled = torch.compile(module.to(dtype), mode="max-autotune")
        for batch in batches:
            x = network.inputs(batch).cuda()
            x = x.to(dtype) if x.is_floating_point() else x
            times = []
            with torch.no_grad():
                for index in range(rounds + 10):
                    torch.cuda.synchronize()
                    started = time.perf_counter()
                    compiled(x)
                    torch.cuda.synchronize()
                    times += [1e3 * (time.perf_counter() - started)] if index >= 10 else []
            ordered = sorted(times)
            quantiles = " | ".join(f"{ordered[int(q * (len(ordered) - 1))]:.4g}" for q in (0.5, 0.9, 0.99))
            yield f"| {network.name} | torch.compile {name} | {batch} | {quantiles} | |"


def hessian_in_half(batch: int = 128, probes: int = 8) -> Iterator[str]:
    """Lines of a table: HAP's traces in single precision against EHAP's in FP16 and BF16, time and peak memory."""
    x = torch.randn(batch, 3, 32, 32)
    program = sc.capture(settle(resnet20(), x), (x,))
    program.graph_module.cuda()
    loader = [(x.cuda(), torch.randint(0, 10, (batch,)).cuda())]
    for method, options in (("hap", {}), ("ehap", {"precision": "fp16"}), ("ehap", {"precision": "bf16"})):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        sc.rank(program, loader, method=method, samples=batch, probes=probes, **options)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated() / 2**20
        yield f"| {method} {options.get('precision', 'fp32')} | {seconds / probes:.3f} | {peak:,.0f} |"
