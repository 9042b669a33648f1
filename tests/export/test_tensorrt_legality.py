"""The verifier of legality: it agrees with the real parser and builder, and says node, module and fix."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper
from tensorrt_graphs import FLOAT_KERNEL, GRAPHS, ILLEGAL, MISREAD, Graph

from secateur.errors import UnsupportedError
from secateur.export.tensorrt.legality import check_legality, require_legal
from secateur.export.tensorrt.operators import SUPPORTED
from secateur.export.tensorrt.sparsity import two_of_four

TESTS = Path(__file__).parents[1]


def rtx():
    """The installed TensorRT-RTX, or a visible skip."""
    return pytest.importorskip(
        "tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'secateur[tensorrt-rtx]'"
    )


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    rtx()
    # The folder of tests goes last: it has one that is called secateur.
    script = (
        "import secateur.export, runpy, sys; sys.path.append(sys.argv[1]); runpy.run_path(sys.argv[2], {}, '__main__')"
    )
    argv = [sys.executable, "-c", script, str(TESTS), str(TESTS / "tensorrt_verdicts.py")]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path_factory.mktemp("verdicts"), timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_is_judged_by_the_rule_that_it_breaks(name):
    findings = check_legality(GRAPHS[name]())
    illegal = [finding for finding in findings if finding.illegal]
    assert (illegal[0].rule if illegal else None) == ILLEGAL.get(name)
    assert all(finding.reason and finding.fix for finding in findings)
    assert all(finding.node for finding in findings if finding.rule != "output")
    if not illegal:
        assert any(finding.rule == "float kernel" for finding in findings) == (name in FLOAT_KERNEL)


def test_the_parser_and_the_builder_say_the_same(verdicts):
    assert verdicts.keys() == GRAPHS.keys() and len(GRAPHS) >= 60
    rejected = {name for name, (verdict, _) in verdicts.items() if verdict != "built"}
    assert rejected == set(ILLEGAL) - MISREAD, {name: verdicts[name] for name in rejected ^ (set(ILLEGAL) - MISREAD)}


def test_what_the_builder_computes_on_floats_is_foretold(verdicts):
    """Each of these graphs has one layer with quantised weights."""
    kernels = {"correlation", "gemm", "deconv", "runtime_fusion"}
    for name in FLOAT_KERNEL | {"integer convolution", "integer Gemm", "integer MatMul", "depthwise convolution"}:
        verdict, layers = verdicts[name]
        assert verdict == "built"
        integer = [kind in ("correlation", "gemm") and types == ["Int8"] for kind, types in layers if kind in kernels]
        assert integer == [name not in FLOAT_KERNEL], name


def test_the_table_of_operators_is_that_of_the_parser():
    module = rtx()
    import onnx

    parser = module.OnnxParser(module.Builder(module.Logger()).create_network(0), module.Logger())
    names = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert {name for name in names if parser.supports_operator(name)} >= SUPPORTED & names
    assert not {name for name in names - SUPPORTED if parser.supports_operator(name)}


def test_the_refusal_names_node_module_and_fix():
    with pytest.raises(UnsupportedError) as caught:
        require_legal(GRAPHS["int32 bias of a Gemm"](), paths={"c": "head.fc, model.py:12"})
    error = caught.value
    assert "c/bias" in error.where and "head.fc, model.py:12" in error.where
    assert "int32" in error.why and "tensorrt" in error.hint


def test_a_module_is_found_by_its_parameters():
    finding = next(f for f in check_legality(GRAPHS["weight zero point"]()) if f.illegal)
    assert finding.path == "c"


def test_turing_takes_no_products_with_fp32_results():
    for name, legal in (("float MatMul", False), ("integer Gemm", False), ("float convolution", True)):
        findings = check_legality(GRAPHS[name](), capabilities=("7.5", "8.6"))
        assert any(f.rule == "Turing" and f.illegal for f in findings) is not legal
        assert not any(f.rule == "Turing" for f in check_legality(GRAPHS[name](), capabilities=("8.6",)))


def test_turing_takes_the_integers_from_every_gpu_in_the_list():
    model = GRAPHS["integer convolution"]()
    (remark,) = check_legality(model, capabilities=("8.6", "7.5"))
    assert (remark.rule, remark.node, remark.illegal) == ("Turing", "c", False) and "on 8.6 as well" in remark.reason
    assert not check_legality(GRAPHS["half convolution"](), capabilities=("8.6", "7.5"))


def _sparse_model(keep_second: bool):
    g = Graph()
    first = g.conv(g.qdq("x", "a"), "c")
    model = g.model(g.conv(g.qdq(first, "b"), "d"))
    for tensor in model.graph.initializer:
        if tensor.name == "c.weight" or (tensor.name == "d.weight" and not keep_second):
            codes = numpy_helper.to_array(tensor).copy()
            codes[:, 0::4], codes[:, 1::4] = 0, 0
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    return model


def test_sparse_kernels_need_the_pattern():
    assert not check_legality(_sparse_model(keep_second=False), sparse=True)
    (remark,) = check_legality(_sparse_model(keep_second=True), sparse=True)
    assert (remark.rule, remark.node, remark.illegal) == ("2:4", "d", False)
    findings = check_legality(GRAPHS["integer convolution"](), sparse=True)
    assert [f.illegal for f in findings if f.rule == "2:4"] == [True]


def test_two_of_four_is_counted_along_the_input_channels():
    weight = np.ones((2, 8, 3, 3))
    weight[:, [0, 1, 4, 5]] = 0
    assert two_of_four(weight, 1) == ""
    assert "2 input channels" in two_of_four(weight, 0)
    weight[0, 0, 1, 2] = 1
    assert two_of_four(weight, 1).startswith("1 of 36 groups")


def test_codes_that_no_integer_operator_reads_are_remarked():
    (remark,) = check_legality(GRAPHS["codes for a Softmax"]())
    assert (remark.rule, remark.node, remark.illegal) == ("float operator", "a", False) and "Softmax" in remark.reason
    assert not check_legality(GRAPHS["codes for a Relu"]())


def test_widths_off_the_grid_are_remarked():
    g = Graph()
    model = g.model(g.conv(g.qdq("x", "a"), "c", out=24))
    (remark,) = check_legality(model)
    assert (remark.rule, remark.illegal) == (
        "alignment",
        False,
    ) and "24 output channels cost as much as 32" in remark.reason
