"""Saved programs: exact, without classes, and closed to foreign files."""

import copy
import functools
import hashlib
import json
import shutil

import pytest
import torch
from nets import NETS, rebatch
from torch import nn
from torch.utils import _pytree as pytree

from secateur.errors import ExitCode, UnsupportedError, UserError
from secateur.passes.capture import capture
from secateur.passes.codec import CodecError, decode, encode
from secateur.passes.program import Program
from secateur.passes.quant.grid import Grid
from secateur.passes.quant.modules import FakeQuantize
from secateur.passes.verify import verify

FILES = ("graph.json", "weights.safetensors", "examples.safetensors")


def call(network, inputs):
    return network(**inputs) if isinstance(inputs, dict) else network(*inputs)


def assert_equal(left, right):
    left, left_spec = pytree.tree_flatten(left)
    right, right_spec = pytree.tree_flatten(right)
    assert left_spec == right_spec
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@functools.cache
def _captured(name):
    model, inputs = NETS[name]()
    return model, inputs, capture(model, inputs)


def captured(name):
    """Model, inputs and program, each the test's own."""
    model, inputs, program = _captured(name)
    return copy.deepcopy(model), inputs, program.clone()


def saved(tmp_path, name="plain"):
    _, _, program = captured(name)
    program.save(tmp_path / "p")
    return program, tmp_path / "p"


def rewrite(directory, change):
    """Changes graph.json as a careful forger would: digests still fit."""
    path = directory / "graph.json"
    document = json.loads(path.read_text())
    change(document)
    for name in set(document["digests"]) & set(FILES):
        document["digests"][name] = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("name", NETS)
def test_round_trip_is_exact(name, tmp_path):
    model, inputs, program = captured(name)
    program.save(tmp_path / "p")
    loaded = Program.load(tmp_path / "p")
    verify(loaded)
    other = rebatch(inputs, 5)
    with torch.no_grad():
        assert_equal(call(loaded.module(), other), call(model, other))
        assert_equal(loaded.run_example(), program.run_example())
    assert (loaded.static_batch, loaded.history) == (program.static_batch, program.history)
    assert_equal(loaded.graph_module.state_dict(), program.graph_module.state_dict())
    for before, after in zip(program.graph.nodes, loaded.graph.nodes, strict=True):
        assert (before.name, before.op, before.target) == (after.name, after.op, after.target)
        assert before.meta.get("path") == after.meta.get("path")
        assert before.meta.get("source") == after.meta.get("source")
        assert repr(before.meta["val"]) == repr(after.meta["val"])

    loaded.save(tmp_path / "again")
    for file in FILES:
        assert (tmp_path / "p" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()

    program.train(), loaded.train()
    outputs = []
    for network in (program.module(), loaded.module()):
        torch.manual_seed(2)
        output = call(network, other)
        sum(leaf.sum() for leaf in pytree.tree_leaves(output)).backward()
        outputs.append(output)
    assert_equal(*outputs)
    assert_equal(loaded.graph_module.state_dict(), program.graph_module.state_dict())
    gradients = [{n: p.grad for n, p in g.named_parameters()} for g in (program.graph_module, loaded.graph_module)]
    assert_equal(*gradients)


def test_mode_frozen_parameters_and_ties_are_kept(tmp_path):
    model, inputs = NETS["shared"]()
    model.stem.weight.requires_grad_(False)
    program = capture(model, inputs).train()
    program.save(tmp_path / "p")
    network = Program.load(tmp_path / "p").graph_module
    assert network.training and network.get_submodule("shared").training
    assert not network.get_parameter("stem.weight").requires_grad
    assert network.get_parameter("stem.bias").requires_grad
    assert network.get_parameter("first.weight") is network.get_parameter("second.weight")


def test_layers_of_other_rooms(tmp_path):
    model, inputs, program = captured("biased")
    network = program.graph_module
    fake = FakeQuantize(Grid(signed=False, symmetric=False))
    fake.scale.fill_(0.05), fake.zero_point.fill_(3)
    network.add_submodule("quantize.input", fake)
    image = next(iter(network.graph.nodes))
    with network.graph.inserting_after(image):
        node = network.graph.call_module("quantize.input", (image,))
    image.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    network.recompile()
    program.save(tmp_path / "p")
    loaded = Program.load(tmp_path / "p")
    assert isinstance(loaded.graph_module.get_submodule("quantize.input"), FakeQuantize)
    with torch.no_grad():
        assert_equal(loaded.run_example(), program.run_example())
        assert (loaded.run_example() - call(model, inputs)).abs().max() > 0


def test_pt2_is_readable_without_secateur(tmp_path):
    for name in ("two_inputs", "keyword_input", "dict_input"):
        model, inputs, program = captured(name)
        program.save(tmp_path / name, pt2=True)
        other = rebatch(inputs, 3)
        with torch.no_grad():
            assert_equal(call(torch.export.load(tmp_path / name / "program.pt2").module(), other), call(model, other))


def test_saving_again_replaces_and_leaves_nothing_beside(tmp_path):
    _, directory = saved(tmp_path)
    _, _, second = captured("resnet_a")
    second.save(directory)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]
    assert sorted(p.name for p in directory.iterdir()) == sorted(FILES)
    assert_equal(Program.load(directory).run_example(), second.run_example())


def test_a_save_that_fails_leaves_the_earlier_program(tmp_path, monkeypatch):
    program, directory = saved(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="cannot be written") as caught:
        program.save(directory)
    assert "No space left" in caught.value.why
    assert_equal(Program.load(directory).run_example(), program.run_example())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p"]


def test_a_save_killed_while_it_swapped_is_put_back(tmp_path):
    program, directory = saved(tmp_path)
    directory.rename(tmp_path / ".p.old")
    assert_equal(Program.load(directory).run_example(), program.run_example())


def test_other_files_are_never_replaced(tmp_path):
    program, _ = saved(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    for target in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(UserError, match="directory of its own"):
            program.save(target)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"


def test_missing_and_damaged_files(tmp_path):
    _, good = saved(tmp_path)

    def broken(change):
        directory = tmp_path / "broken"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(good, directory)
        change(directory)
        with pytest.raises(UserError) as caught:
            Program.load(directory)
        assert caught.value.code == ExitCode.USAGE and caught.value.hint and caught.value.where
        return caught.value

    assert "no program here" in broken(shutil.rmtree).what
    assert "damaged" in broken(lambda d: (d / "graph.json").write_text("{")).what
    assert "damaged" in broken(lambda d: (d / "graph.json").write_bytes(b"\xff\xfe")).what
    assert "not the graph" in broken(lambda d: (d / "graph.json").write_text("[]")).what
    assert "another version" in broken(lambda d: rewrite(d, lambda doc: doc.update(version=99))).what
    assert "sha256" in broken(lambda d: (d / "weights.safetensors").write_bytes(b"x" * 100)).why
    assert "damaged" in broken(lambda d: (d / "weights.safetensors").unlink()).what
    assert "damaged" in broken(lambda d: (d / "examples.safetensors").unlink()).what
    for key in ("nodes", "layers", "tensors", "signature", "examples", "digests"):
        assert "damaged" in broken(lambda d, key=key: rewrite(d, lambda doc: doc.update({key: {"digests": 1}}))).what


INJECTION = 'x=__import__("pathlib").Path("{marker}").touch()'


def forgeries(marker):
    """Changes of graph.json that would run code of their author if names went into generated source unchecked."""
    code = INJECTION.format(marker=marker)

    def node(document, op):
        return next(entry for entry in document["nodes"] if entry["op"] == op)

    def rename(entries, old, new):
        entries[:] = json.loads(json.dumps(entries).replace(json.dumps(old), json.dumps(new)))

    yield lambda d: node(d, "call_function").update(target="os.system")
    yield lambda d: node(d, "call_function").update(target="builtins.eval")
    yield lambda d: node(d, "call_function").update(target="operator.attrgetter")
    yield lambda d: node(d, "call_function").update(target="torch.load")
    yield lambda d: node(d, "call_function").update(target="torch.ops.load_library")
    yield lambda d: node(d, "call_function").update(target="aten.from_file.default")
    yield lambda d: node(d, "call_function").update(target="aten.__class__.__init__")
    yield lambda d: node(d, "call_function").update(op="call_method", target="numpy")
    yield lambda d: node(d, "placeholder").update(target=code)
    yield lambda d: rename(d["nodes"], node(d, "placeholder")["name"], f"x = 1; {code}; y")
    yield lambda d: node(d, "call_module").update(target=f"0'); {code}")
    yield lambda d: node(d, "call_function").update(kwargs={"dict": [[f"a=1); {code}; (b", 1]]})
    yield lambda d: d["signature"].update(names=[code])
    yield lambda d: d["layers"].update({f'a"); {code}; ("': {"type": "Dropout", "options": {"dict": [["p", 0.5]]}}})
    yield lambda d: d["layers"]["0"].update(type="os.system")
    yield lambda d: d["tensors"].update({'a"+b': d["tensors"]["0.weight"]})
    yield lambda d: d["examples"].update({"tuple": [{"pickle": "x"}]})


@pytest.mark.parametrize("index", range(17))
def test_forged_graphs_are_refused_and_run_nothing(index, tmp_path):
    _, directory = saved(tmp_path)
    marker = tmp_path / "ran"
    rewrite(directory, list(forgeries(marker))[index])
    with pytest.raises(UserError) as caught:
        Program.load(directory)
    assert caught.value.hint
    assert not marker.exists()


def test_all_forgeries_are_tried(tmp_path):
    assert len(list(forgeries(tmp_path))) == 17


def test_what_cannot_be_saved_is_refused(tmp_path):
    program, _ = saved(tmp_path)

    class Mine(nn.ReLU):
        pass

    network = program.graph_module
    network.set_submodule("0", Mine())
    with pytest.raises(UnsupportedError, match="cannot be saved"):
        program.save(tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -3,
        1e-5,
        0.1 + 0.2,
        float("inf"),
        float("-inf"),
        "text",
        (1, (2.5, None)),
        [1, [2, (3,)]],
        {"a": 1, 2: (3,)},
        slice(None, 3, 2),
        Ellipsis,
        2 + 3j,
        torch.float16,
        torch.strided,
        torch.channels_last,
        torch.device("cpu"),
    ],
)
def test_values_survive_json(value):
    back = decode(json.loads(json.dumps(encode(value))))
    assert back == value and type(back) is type(value)


def test_values_without_json_form_are_refused():
    for value in (object(), {1, 2}, torch.zeros(1), nn.ReLU(), b"bytes"):
        with pytest.raises(CodecError):
            encode(value)
    for data in ({"a": 1, "b": 2}, {"unknown": 1}, {"node": "x"}, {"dtype": "nn"}, {"dtype": "x.y"}, {"device": "os"}):
        with pytest.raises(CodecError):
            decode(data)
