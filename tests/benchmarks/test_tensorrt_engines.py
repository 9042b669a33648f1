"""INT8 engines of networks that people deploy, built without a GPU: legal, integer, and right."""

import functools

import onnx
import pytest
import torch

from secateur.export.tensorrt.engine_file import engine_for
from secateur.export.tensorrt.key import engine_key
from secateur.export.tensorrt.legality import check_legality
from secateur.export.tensorrt.library import DEFAULT_CAPABILITIES, Library, load_library
from secateur.export.tensorrt.settings import EngineSettings

SETTINGS = EngineSettings(batch=(1, 8, 32))
FLOAT = {"ResNet-20": 1, "MobileNetV2": 1, "ResNet-50": 1, "BERT-like": 1 + 2 * 4}
"""Layers that stay float: the classifier, and in each of the encoder's four layers two products of attention."""


@pytest.fixture(scope="module")
def library() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'secateur[tensorrt-rtx]'")
    return load_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def built(library, ranking_path, tmp_path_factory):
    """Rows of a network by the first word of its name; each is captured once."""
    from engines.build import INT8, Form, build_all
    from engines.networks import NETWORKS

    @functools.cache
    def rows(name):
        network = next(network for network in NETWORKS if network.name.startswith(name))
        pruned = [Form("INT8, pruned", pruned=True, quantised=True)] if name == "ResNet-20" else []
        return list(build_all(network, library, SETTINGS, tmp_path_factory.mktemp("engines"), [INT8, *pruned]))

    return rows


@pytest.mark.parametrize("name", FLOAT)
def test_an_int8_engine_is_built_without_a_gpu(name, built, library, record_property):
    row = built(name)[0]
    record_property(
        "measured",
        f"INT8 engine of {row.network}: {row.integer} of {row.total} layers integer, "
        f"ONNX {row.onnx_bytes / 1e3:,.0f} kB, engine {row.plan_bytes / 1e3:,.0f} kB, "
        f"built in {row.seconds:.2f} s, {row.cpu_seconds:.2f} s of them on the processor",
    )
    assert sum(row.float_reasons.values()) == row.total - row.integer == FLOAT[name]
    assert row.float_reasons["its weights are not quantised"] == 1
    # The file on the CPU against the simulation: unrelated outputs would give 1.4. FP16 moves values across the border
    # of two codes, and depth with random weights makes more of it.
    assert row.error < 0.15
    onnx_file = row.plan.with_suffix(".onnx")
    assert not [finding for finding in check_legality(onnx.load(str(onnx_file))) if finding.illegal]
    found, _ = engine_for(row.plan, onnx_file, None)
    assert found.key == engine_key(onnx_file, SETTINGS, library, None)
    assert found.key.capabilities == DEFAULT_CAPABILITIES and found.facts["precision"]["source"] == "build log"
    assert row.plan.stat().st_size == row.plan_bytes > 100_000 and row.seconds > 0


def test_a_pruned_engine_is_integer_and_on_the_grid(built):
    _, row = built("ResNet-20")
    assert row.total - row.integer == FLOAT["ResNet-20"] and row.error < 0.15
    weights = [t for t in onnx.load(str(row.plan.with_suffix(".onnx"))).graph.initializer if len(t.dims) == 4]
    assert sorted({weight.dims[0] for weight in weights}) == [16, 32, 48]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_cannot_be_timed_here_says_why(built):
    from engines.gpu import time_engines, time_providers
    from engines.networks import NETWORKS

    rows = built("ResNet-20")
    (line,) = time_engines(rows, NETWORKS[0], (1,), 0.1)
    assert "not run" in line and "CUDA" in line
    lines = list(time_providers(rows, NETWORKS[0], (1,), 0.1))
    assert [provider in line for provider, line in zip(("cuda", "tensorrt", "tensorrt-rtx"), lines, strict=True)]
    assert all("not run" in line for line in lines)
