"""Latency, file size and activation memory as functions of the widths, against networks that were really rewritten."""

import functools
import json
from dataclasses import replace

import nets
import numpy as np
import pytest
from nets import NETS

from secateur.compress.cost import latency_table
from secateur.compress.cost.axes import AxisReader, sizes
from secateur.compress.cost.file_size import size_column
from secateur.compress.cost.latency_cache import FORMAT, VARIABLE, LatencyCache, cache_folder
from secateur.compress.cost.latency_table import PERIOD, LatencyTable, grid_points, measure_table
from secateur.compress.cost.memory import memory_columns, peak
from secateur.compress.cost.sites import layer_sites
from secateur.compress.cost.whole import float_network, integer_network, network_profile
from secateur.errors import UserError
from secateur.export.layer_model import LayerShape, layer_model
from secateur.export.layer_times import Timing, time_layers
from secateur.export.ort_session import open_session
from secateur.export.targets import ORT_CPU
from secateur.passes.labels.flow import shape_of
from secateur.passes.prune import apply

CONV = LayerShape("conv", True, 0, 0, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))


@functools.cache
def captured(name):
    return nets.captured(name)


def narrowed(program, seed):
    """A really rewritten network, and its widths."""
    rng = np.random.default_rng(seed)
    widths = np.array([g.width if g.frozen else rng.integers(1, g.width + 1) for g in program.groups])
    keep = {g.name: range(int(w)) for g, w in zip(program.groups, widths, strict=True) if w < g.width}
    return apply(program, {n: list(k) for n, k in keep.items()}, allow_unchanged=True), widths


def full(program):
    return np.array([group.width for group in program.groups])


@pytest.mark.parametrize("name", NETS)
def test_layers_and_values_have_the_sizes_that_rewriting_gives_them(name):
    program = captured(name)
    smaller, widths = narrowed(program, 1)
    sites, there = layer_sites(program, ()), layer_sites(smaller, ())
    assert [site.node for site in sites] == [site.node for site in there]
    for site, real in zip(sites, there, strict=True):
        layer = smaller.graph_module.get_submodule(site.path)
        inputs = getattr(layer, "in_channels", getattr(layer, "in_features", None))
        outputs = getattr(layer, "out_channels", getattr(layer, "out_features", None))
        # A grouped convolution may lose whole groups or channels of each; depthwise and plain ones are exact.
        if real.family.groups in (0, 1):
            assert int(sizes(site.inputs, widths[None])[0]) == inputs
        assert int(sizes(site.outputs, widths[None])[0]) == outputs
    reader, nodes = AxisReader(program), {node.name: node for node in smaller.graph.nodes}
    compared = 0
    for node in program.graph.nodes:
        real = nodes.get(node.name)
        both = [n for n in (node, real) if n is not None and hasattr(n.meta.get("val"), "shape")]
        if node.op in ("call_module", "call_function") and len(both) == 2:
            assert int(sizes(reader.elements(node), widths[None])[0]) == np.prod(shape_of(real)), node.name
            compared += 1
    assert compared


@pytest.mark.parametrize("name", ["resnet_b", "plain", "mobilenet", "densenet"])
def test_the_size_of_the_file_is_that_of_the_rewritten_network(name):
    program = captured(name)
    network = integer_network(program, ORT_CPU)
    column = size_column(program, layer_sites(program, network.integer), network)
    assert column.cost(full(program)[None])[0] == pytest.approx(network.size)
    for seed in range(2):
        smaller, widths = narrowed(program, seed)
        # Numbers that describe sizes take a few bytes less where they are small.
        assert column.cost(widths[None])[0] == pytest.approx(integer_network(smaller, ORT_CPU).size, abs=200)


def alive(program):
    """Largest sum of elements of values that are needed at once, by walking the graph of a rewritten network."""
    return peak(memory_columns(program), full(program))


@pytest.mark.parametrize("name", ["resnet_b", "plain", "mobilenet", "densenet", "preact"])
def test_activation_memory_is_that_of_the_rewritten_network(name):
    program = captured(name)
    columns = memory_columns(program)
    for seed in range(3):
        smaller, widths = narrowed(program, seed)
        assert peak(columns, widths) == pytest.approx(alive(smaller))


def test_activation_memory_by_hand():
    program = captured("plain")
    first = next(node for node in program.graph.nodes if node.op == "call_module")
    image = int(np.prod(shape_of(first.all_input_nodes[0])[1:]))
    out = int(np.prod(shape_of(first)[1:]))
    # While the first convolution runs, the image and its result are alive, in FP32 and per sample.
    moments = {c.name: c for c in memory_columns(program, bytes_per_element=4)}
    most = peak(tuple(moments.values()), full(program))
    assert most >= 4 * (image + out)


def table(points):
    return LatencyTable({CONV: {pair: Timing(t, 0.0, 10) for pair, t in points.items()}})


def test_a_measured_point_is_returned_as_it_is():
    found = table({(16, 16): 5.0, (16, 12): 9.0, (8, 16): 3.0, (8, 12): 6.0})
    assert found.at(CONV, np.array([[16, 12], [8, 16]])).tolist() == [9.0, 3.0]


def test_output_widths_are_interpolated_among_those_of_the_same_remainder():
    points = {(16, o): float(o) + (100 if o % PERIOD else 0) for o in (16, 24, 48, 56, 64)}
    found = table({**points, **{(8, o): t / 2 for (_, o), t in points.items()}})
    assert found.timing(CONV, (16, 32)).micros == pytest.approx(32.0)
    assert found.timing(CONV, (16, 40)).micros == pytest.approx(140.0)
    assert found.timing(CONV, (12, 40)).micros == pytest.approx((140.0 + 70.0) / 2)


def test_nothing_is_interpolated_where_a_narrower_layer_is_slower():
    found = table({(8, 16): 9.0, (16, 16): 5.0, (32, 16): 10.0})
    assert found.timing(CONV, (12, 16)).micros == 9.0
    assert found.timing(CONV, (24, 16)).micros == 7.5


def test_a_single_refined_point_leaves_the_others_alone():
    grid = {(i, o): float(i * o) for i in (8, 16, 32) for o in (16, 32, 48)}
    found = table(grid).replaced({(CONV, (20, 24)): Timing(1.0, 0.0, 10)})
    assert found.timing(CONV, (20, 24)).micros == 1.0
    assert found.timing(CONV, (20, 32)).micros == pytest.approx(640.0)


@pytest.mark.parametrize(("inputs", "outputs"), [((4, 64), (4, 64)), ((4, 512), (4, 512)), ((3, 3), (8, 2048))])
def test_the_grid_holds_its_corners_and_every_remainder(inputs, outputs):
    pairs = np.array([(i, o) for i in range(*_ends(inputs)) for o in range(*_ends(outputs))])
    chosen = set(grid_points(pairs))
    assert chosen <= {(int(i), int(o)) for i, o in pairs} and len(chosen) <= 96
    for i in (pairs[:, 0].min(), pairs[:, 0].max()):
        for o in (pairs[:, 1].min(), pairs[:, 1].max()):
            assert (i, o) in chosen
    assert {o % PERIOD for _, o in chosen} == {int(o) % PERIOD for o in pairs[:, 1]}


def _ends(ends):
    return ends[0], ends[1] + 1, 4


def test_the_cache_is_read_back_and_survives_what_it_does_not_understand(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    cache = LatencyCache(ORT_CPU, 1)
    assert cache.read() == {}
    cache.add({"a": Timing(1.5, 0.25, 20)})
    cache.add({"b": Timing(2.0, 0.5, 20)})
    assert LatencyCache(ORT_CPU, 1).read() == {"a": Timing(1.5, 0.25, 20), "b": Timing(2.0, 0.5, 20)}
    assert not list(tmp_path.rglob("*.partial"))
    # Another number of threads is another device.
    assert LatencyCache(ORT_CPU, 2).read() == {} and LatencyCache(ORT_CPU, 2).path != cache.path
    for text in ("", "[]", json.dumps({"format": FORMAT, "device": {}, "layers": {"a": [1, 1, 1]}}), '{"layers": 3}'):
        cache.path.write_text(text)
        assert cache.read() == {}
    cache.add({"c": Timing(1.0, 0.0, 1)})
    assert set(cache.read()) == {"c"}


def test_a_cache_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be kept") as caught:
        LatencyCache(ORT_CPU, 1, tmp_path / "file").add({"a": Timing(1.0, 0.0, 1)})
    assert VARIABLE in caught.value.hint


def test_what_is_cached_is_not_measured_again(tmp_path):
    cache = LatencyCache(ORT_CPU, 1, tmp_path)
    family = replace(CONV, batch=1)
    wanted = {family: [np.array([[4, 4], [4, 8]])]}
    seen = []
    first = measure_table(wanted, ORT_CPU, seconds=1, cache=cache, progress=lambda d, n: seen.append((d, n)))
    assert seen[-1] == (2, 2)
    more = {family: [np.array([[4, 4], [4, 8], [8, 8]])]}
    seen.clear()
    again = measure_table(more, ORT_CPU, seconds=1, cache=cache, progress=lambda d, n: seen.append((d, n)))
    assert seen == [(1, 1)]
    assert again.timing(family, (4, 8)) == first.timing(family, (4, 8))


KINDS = [
    replace(CONV, inputs=8, outputs=16),
    replace(CONV, inputs=8, outputs=16, integer=False),
    replace(CONV, inputs=8, outputs=8, groups=0),
    replace(CONV, inputs=8, outputs=16, groups=4),
    replace(CONV, inputs=8, outputs=16, kind="conv_transpose"),
    LayerShape("conv", True, 8, 16, (32,), (3,), (2,), (1,), (1,)),
    LayerShape("linear", True, 8, 16, ()),
    LayerShape("linear", True, 8, 16, (6,)),
    LayerShape("linear", False, 8, 16, ()),
]


@pytest.mark.parametrize("shape", KINDS, ids=lambda s: s.key.replace(" ", "-"))
def test_every_kind_of_layer_can_be_timed(shape):
    timing = time_layers([replace(shape, batch=2)], ORT_CPU, seconds=0.1)[replace(shape, batch=2)]
    assert timing.micros >= 0 and timing.rounds >= 6 and timing.std_error > 0


@pytest.mark.parametrize("index", [0, 2, 3, 6, 7])
def test_an_integer_layer_is_timed_as_an_integer_kernel(index, tmp_path):
    open_session(layer_model(KINDS[index], ORT_CPU.scheme, ORT_CPU.opset), optimised=tmp_path / "o.onnx")
    import onnx

    operators = {node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node}
    assert operators & {"QLinearConv", "QGemm", "MatMulIntegerToFloat"} and not operators & {"Conv", "Gemm", "MatMul"}


def test_the_summary_of_samples_is_robust():
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(100, 2, 80), rng.uniform(1000, 9000, 20)])
    timing = Timing.of(samples)
    assert timing.micros == pytest.approx(100, abs=1.5) and timing.mad < 4
    assert timing.std_error == pytest.approx(1.2533 * 1.4826 * timing.mad / 10)


@pytest.mark.parametrize("name", ["resnet_b", "mobilenet", "plain"])
def test_kernels_of_a_network_are_led_back_to_its_layers(name):
    program = captured(name)
    network = integer_network(program, ORT_CPU)
    assert network.size < float_network(program, ORT_CPU).size
    profile = network_profile(network, batch=2, threads=1)
    named = {kernel.name for kernel in profile.kernels}
    integer = {site.node for site in layer_sites(program, network.integer) if site.family.integer}
    assert integer and integer <= named
    assert profile.between.micros > 0 and all(kernel.timing.micros >= 0 for kernel in profile.kernels)


def test_layers_were_measured_for_minutes_before_a_cache_that_cannot_be_written_was_seen(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(latency_table, "time_layers", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(UserError, match="cannot be kept"):
        measure_table({CONV: [np.array([[4, 4]])]}, ORT_CPU, cache=LatencyCache(ORT_CPU, 1, tmp_path / "file"))
