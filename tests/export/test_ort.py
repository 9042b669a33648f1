"""Reading back kernels, and measuring latency."""

import json
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from nets import NETS
from onnx import helper, numpy_helper

from secateur.errors import UserError
from secateur.export import latency
from secateur.export.cpu import cpu_facts
from secateur.export.latency import MAX_ROUNDS, MIN_ROUNDS, make_feeds, measure, median_interval
from secateur.export.lower import lower
from secateur.export.ort_kernels import kernel_report
from secateur.export.ort_session import open_session
from secateur.export.targets import ORT_CPU
from secateur.passes.capture import capture

FLOAT = onnx.TensorProto.FLOAT


def save(path, nodes, constants, shape=("batch", 4, 8, 8), outputs=("y",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def quantised_conv(zero_point, *, quantise_output=True):
    """Nodes and constants of one convolution, with Q/DQ where asked for."""
    constants = {"s": np.float32(0.05), "z": zero_point, "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8)}
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
    ]
    constants["w"] = rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
    nodes.append(helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0))
    out = "c" if quantise_output else "y"
    nodes.append(helper.make_node("Conv", ["xd", "wd"], [out], name="conv", kernel_shape=[3, 3]))
    if quantise_output:
        nodes.append(helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"]))
        nodes.append(helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["y"]))
    return nodes, constants


def test_an_integer_convolution_is_counted(tmp_path):
    report = kernel_report(save(tmp_path / "m.onnx", *quantised_conv(np.uint8(128))))
    assert (report.integer_convs, report.float_convs, report.conv_share) == (1, 0, 1.0)
    assert (report.leftover_quantize, report.leftover_dequantize) == (1, 1)


def test_a_float_convolution_is_named_with_its_reason(tmp_path):
    report = kernel_report(save(tmp_path / "m.onnx", *quantised_conv(np.uint8(128), quantise_output=False)))
    assert report.float_convs == 1 and report.conv_share == 0.0
    assert report.float_nodes[0].name == "conv" and "output is not quantised" in report.float_nodes[0].reason


def test_layers_of_a_float_network_keep_their_names(tmp_path):
    net, example = NETS["resnet_b"]()
    model = lower(capture(net, example), ORT_CPU)
    onnx.save(model, tmp_path / "m.onnx")
    report = kernel_report(tmp_path / "m.onnx")
    layers = {node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    assert {f.name for f in report.float_nodes} == layers
    assert report.share == 0.0 and report.integer_convs == 0
    assert json.loads(json.dumps(report.to_json()))["float_convs"] == report.float_convs


def test_a_network_without_layers_has_nothing_that_is_float(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {})
    assert kernel_report(path).share == 1.0


@pytest.fixture(scope="module")
def two_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    paths = {}
    for name, width in (("small", 8), ("large", 128)):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["h"], kernel_shape=[3, 3], pads=[1] * 4),
            helper.make_node("Conv", ["h", "v"], ["y"], kernel_shape=[3, 3], pads=[1] * 4),
        ]
        constants = {
            "w": rng.standard_normal((width, 4, 3, 3)).astype(np.float32),
            "v": rng.standard_normal((width, width, 3, 3)).astype(np.float32),
        }
        paths[name] = save(folder / f"{name}.onnx", nodes, constants, ("batch", 4, 16, 16))
    return paths


@pytest.fixture
def timed(monkeypatch):
    """Measures models whose runs take given times, on a clock that only they move: `timed(micros(name, run), …)`."""
    now = 0

    def measured(micros, names, **options):
        class Session:
            def __init__(self, path, **_):
                self.name, self.runs = str(path), 0

            def get_inputs(self):
                return []

            def run(self, outputs, feeds):
                nonlocal now
                now += int(1e3 * micros(self.name, self.runs))
                self.runs += 1

        monkeypatch.setattr(latency, "open_model", Session)
        monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter_ns=lambda: now))
        return measure({name: name for name in names}, clock=lambda: now, **options)

    return measured


def test_a_ratio_is_of_runs_side_by_side_whatever_the_machine_does_meanwhile(timed):
    """Each second run is disturbed in one model or the other, and half-way everything gets ten times slower."""
    rng = np.random.default_rng(0)

    def micros(name, run):
        return {"a": 300, "b": 100}[name] * (10 if run > 40 else 1) * rng.choice([1, 1, 1, 8])

    report = timed(micros, ("a", "b"), rounds=80, warmup=0)
    fast = report.at(1, "b")
    assert fast.speedup.median == pytest.approx(3) and fast.speedup.low <= 3 <= fast.speedup.high
    assert fast.p10 == pytest.approx(0.1) and fast.p99 > 1 and report.at(1, "a").speedup.median == 1.0


def test_a_model_is_as_fast_as_itself(timed):
    rng = np.random.default_rng(1)
    report = timed(lambda name, run: rng.lognormal(5, 0.3), ("a", "b"), rounds=200)
    speedup = report.at(1, "b").speedup
    assert speedup.low < 1 < speedup.high and 0.9 < speedup.median < 1.1


@pytest.mark.parametrize(("micros", "rounds"), [(1e3, 100), (1e6, MIN_ROUNDS), (1.0, MAX_ROUNDS)])
def test_the_budget_decides_how_often_is_measured(timed, micros, rounds):
    report = timed(lambda name, run: micros, ("a", "b"), budget_seconds=0.2)
    assert report.at(1, "b").rounds == rounds


def test_a_small_model_is_faster_than_a_large_one(two_models):
    """For real: two hundred times the work, so that no noise turns the order round."""
    paths = {"large": two_models["large"], "small": two_models["small"]}
    report = measure(paths, batches=(1, 4), rounds=30)
    assert report.baseline == "large"
    for batch in (1, 4):
        small = report.at(batch, "small")
        assert small.speedup.median > 1 and small.rounds == 30
        assert small.p10 <= small.median <= small.p90 <= small.p99
    document = json.loads(json.dumps(report.to_json()))
    assert document["environment"]["threads"] == 1 and document["environment"]["onnxruntime"]
    assert document["batches"][0]["models"]["small"]["rounds"] == 30


def test_every_round_runs_all_models_in_alternating_order(two_models, monkeypatch):
    calls = []

    class Session:
        def __init__(self, path, **options):
            self.path = str(path)

        def get_inputs(self):
            return []

        def run(self, outputs, feeds):
            calls.append(self.path)

    monkeypatch.setattr(latency, "open_model", Session)
    measure({"a": "a", "b": "b"}, rounds=3, warmup=0)
    assert calls == ["a", "b", "b", "a", "a", "b"]


def test_the_interval_covers_the_median_of_the_population():
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(60):
        ratio = median_interval(rng.normal(2.0, 0.3, 40), seed=seed)
        covered += ratio.low <= 2.0 <= ratio.high
    assert covered >= 50  # 57 expected; binomial tail below 1e-3
    assert median_interval(np.ones(5)) == median_interval(np.ones(5), seed=3)


def test_integer_inputs_are_drawn_from_the_example(tmp_path):
    net, example = NETS["embedder"]()
    onnx.save(lower(capture(net, example), ORT_CPU), tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    with pytest.raises(UserError, match="integers"):
        make_feeds(session, 3, {})
    ids = example[0].numpy()
    feeds = make_feeds(session, 3, {"ids": ids})
    assert feeds["ids"].shape == (3, 6) and np.isin(feeds["ids"], ids).all()
    report = measure({"m": tmp_path / "m.onnx"}, {"ids": ids}, batches=(3,), rounds=7)
    assert report.at(3, "m").rounds == 7


def test_inputs_are_seeded_and_the_same_for_every_model(two_models):
    small, large = (open_session(two_models[name]) for name in ("small", "large"))
    first, second = make_feeds(small, 2, {}), make_feeds(large, 2, {})
    np.testing.assert_array_equal(first["x"], second["x"])
    assert not np.array_equal(first["x"], make_feeds(small, 2, {}, seed=1)["x"])


def test_a_fixed_batch_is_not_measured_at_another(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], {}, (2, 4))
    with pytest.raises(UserError, match="fixed batch"):
        measure({"m": path}, batches=(3,), rounds=1)


@pytest.mark.parametrize("options", [{"batches": (0,)}, {"threads": 0}])
def test_senseless_requests_are_refused(two_models, options):
    with pytest.raises(UserError):
        measure({"a": two_models["small"]}, **options)


def test_many_threads_are_warned_about(two_models):
    cores = cpu_facts()["cores"]
    report = measure({"a": two_models["small"]}, threads=cores + 1, rounds=3)
    assert any(f"{cores + 1} threads" in text for text in report.warnings)


def test_processor_is_read_from_the_kernels_description(tmp_path):
    text = "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni\n\nmodel name\t: Other\n"
    (tmp_path / "cpuinfo").write_text(text)
    facts = cpu_facts(tmp_path / "cpuinfo")
    assert facts["cpu"] == "Some CPU" and facts["instruction_sets"] == ["avx2", "avx512_vnni"]
    assert cpu_facts(tmp_path / "missing")["instruction_sets"] == []


def test_literal_sessions_do_not_fuse(tmp_path):
    path = save(tmp_path / "m.onnx", *quantised_conv(np.uint8(128)))
    open_session(path, literal=True, optimised=tmp_path / "literal.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "literal.onnx").graph.node]
    assert kinds.count("DequantizeLinear") == 3 and "QLinearConv" not in kinds
