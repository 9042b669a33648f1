"""What engines are built with: shapes, lists of GPUs, sparse kernels, a timing cache, and either library."""

import json

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.errors import UserError
from secateur.export.lower import lower_program
from secateur.export.targets import TARGETS
from secateur.export.tensorrt import build as building
from secateur.export.tensorrt.build import build_engine
from secateur.export.tensorrt.device import Device
from secateur.export.tensorrt.engine_file import read_engine, write_engine
from secateur.export.tensorrt.layers import layers_of_log
from secateur.export.tensorrt.library import Library, load_library
from secateur.export.tensorrt.log import logger
from secateur.export.tensorrt.settings import EngineSettings, Profile
from secateur.passes.capture import capture

TARGET = TARGETS["tensorrt-rtx"]


@pytest.fixture(scope="module")
def library() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'secateur[tensorrt-rtx]'")
    return load_library("tensorrt_rtx")


def lowered(net, x, path, **options):
    """The file of the quantised network."""
    prepared, _ = prepare(capture(net.eval(), (x,), **options), TARGET.scheme)
    onnx.save(lower_program(calibrate(prepared, [(x, torch.zeros(len(x)))]).eval(), TARGET).model, path)
    return path


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 16, 1)
    )
    return lowered(net, torch.randn(4, 16, 8, 8), tmp_path_factory.mktemp("file") / "model.onnx")


class Tokens(nn.Module):
    """Reads token numbers [batch, length] of any length."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(50, 32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, ids):
        return self.down(torch.relu(self.up(self.embed(ids)))).mean(1)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokens") / "model.onnx"
    return lowered(Tokens(), torch.randint(0, 50, (4, 8)), path, dynamic={"ids": [1]})


def test_an_axis_of_any_length_needs_a_profile(tokens, library):
    with pytest.raises(UserError, match="axis 1 of input ids is dynamic") as caught:
        build_engine(tokens, EngineSettings(), library)
    assert "profiles: {ids:" in caught.value.hint
    profile = Profile(min=(1, 4), best=(8, 64), max=(16, 128))
    built = build_engine(tokens, EngineSettings(profiles={"ids": profile}), library)
    assert built.key.flags["profiles"]["ids"]["best"] == [8, 64]
    assert any("[-1,-1" in line for line in built.layers.splitlines())  # both axes are open in the engine


def test_one_engine_serves_several_gpus(convolutions, library):
    alone, both = (
        build_engine(convolutions, EngineSettings(capabilities=chosen), library)
        for chosen in (("8.6",), ("8.6", "8.9", "12.0"))
    )
    assert both.key.capabilities == ("8.6", "8.9", "12.0") and alone.key.digest != both.key.digest
    assert [entry.integer for entry in both.precision.entries] == [entry.integer for entry in alone.precision.entries]


def test_turing_in_the_list_makes_every_layer_float(convolutions, library):
    """What the verifier says before the build is what the builder does."""
    entries = {
        chosen: build_engine(convolutions, EngineSettings(capabilities=chosen), library).precision.entries
        for chosen in (("8.6",), ("7.5", "8.6"))
    }
    assert sum(entry.integer for entry in entries["8.6",]) == 3
    assert not any(entry.integer for entry in entries["7.5", "8.6"])
    assert "the builder chose a kernel on Float" in {entry.reason for entry in entries["7.5", "8.6"]}


def test_sparse_kernels_are_allowed_for_weights_with_the_pattern(convolutions, library, tmp_path):
    model = onnx.load(str(convolutions))
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 4:
            codes = numpy_helper.to_array(tensor).copy()
            codes[:, 0::4], codes[:, 2::4] = 0, 0
            tensor.CopyFrom(numpy_helper.from_array(codes, tensor.name))
    onnx.save(model, tmp_path / "model.onnx")
    settings = EngineSettings(capabilities=("8.6",), sparse=True, workspace_mib=64, optimization_level=5)
    built = build_engine(tmp_path / "model.onnx", settings, library)
    assert built.key.flags["sparse"] is True
    assert sum(entry.integer for entry in built.precision.entries) == 3


def test_the_layers_of_an_engine_lie_beside_it(convolutions, library, tmp_path):
    built = build_engine(convolutions, EngineSettings(capabilities=("8.6",)), library)
    facts = write_engine(tmp_path / "model.plan", built)
    kept = layers_of_log((tmp_path / "model.plan.layers").read_text())
    assert len(kept) == sum(facts["precision"]["layers"].values()) > 0
    assert {"Int8"} == {layer.inputs[0] for layer in kept if layer.kind == "correlation"} - {"Half"}


class Eleven:
    """TensorRT-RTX with the names of TensorRT 11: no list of GPUs. It counts as the module that it stands for."""

    def __init__(self, module):
        self.module = module

    def __getattr__(self, name):
        if name == "ComputeCapability":
            raise AttributeError(name)
        return getattr(self.module, name)

    def __hash__(self):
        return hash(self.module)

    def __eq__(self, other):
        return other is self.module or other is self


GPU = Device(0, "GPU A", "8.6", 2**30)


@pytest.fixture
def eleven(library, monkeypatch) -> Library:
    logger(library.module)  # one for both
    monkeypatch.setattr(building, "find_device", lambda: GPU)
    return Library("tensorrt", "11.0.0", Eleven(library.module))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of timing caches, in RTX
def test_the_same_module_builds_with_the_other_library(convolutions, eleven, tmp_path):
    cache = tmp_path / "timing.cache"
    built = build_engine(convolutions, EngineSettings(), eleven, timing_cache=cache)
    assert (built.key.library, built.key.device, built.key.capabilities) == ("tensorrt", "GPU A", ("8.6",))
    assert sum(entry.integer for entry in built.precision.entries) == 3
    first = cache.read_bytes()
    assert first
    build_engine(convolutions, EngineSettings(), eleven, timing_cache=cache)
    assert cache.read_bytes()
    cache.write_bytes(b"of another version")
    assert build_engine(convolutions, EngineSettings(), eleven, timing_cache=cache).plan
    with pytest.raises(UserError, match="builds for the device in this machine"):
        build_engine(convolutions, EngineSettings(capabilities=("8.6",)), eleven)


def test_an_engine_is_what_was_written(convolutions, library, tmp_path):
    built = build_engine(convolutions, EngineSettings(capabilities=("8.6",)), library)
    write_engine(tmp_path / "model.plan", built)
    held = read_engine(tmp_path / "model.plan")
    assert held.key == built.key and held.path.read_bytes() == built.plan
    assert json.loads((tmp_path / "model.plan.json").read_text())["digest"] == built.key.digest
