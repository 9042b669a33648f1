"""The runner of engines, with a stand-in for the library that computes here: shapes, buffers, types, time."""

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from secateur.errors import EnvironmentLacksError, UserError
from secateur.export.latency import make_feeds
from secateur.export.session import milliseconds, open_model
from secateur.export.tensorrt.device import clocks, find_device, require_device
from secateur.export.tensorrt.library import Library
from secateur.export.tensorrt.session import EngineSession


class Context:
    """Doubles `x` [batch, 3] into `y`, in FP16, through the addresses that it was given; at most four samples."""

    def __init__(self, fail=False):
        self.fail, self.shape, self.address = fail, None, {}

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] <= 4 and shape[1:] == (3,)

    def get_tensor_shape(self, name):
        return self.shape

    def set_tensor_address(self, name, address):
        self.address[name] = address

    def execute_async_v3(self, handle):
        if self.fail:
            return False
        count = int(np.prod(self.shape))
        x = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.address["x"]))
        y = np.frombuffer((ctypes.c_uint16 * count).from_address(self.address["y"]), np.float16)
        y[:] = 2 * x
        return True


class Logger:
    def __init__(self):
        pass


def library(*, loads=True, fail=False):
    context = Context(fail)
    engine = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: "xy"[i],
        get_tensor_mode=lambda name: {"x": "in", "y": "out"}[name],
        get_tensor_dtype=lambda name: {"x": "DataType.FLOAT", "y": "DataType.HALF"}[name],
        get_tensor_shape=lambda name: (-1, 3),
        create_execution_context=lambda: context,
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if loads else None)

    class Module:  # hashable: the logger of a library is remembered by its module
        ILogger = Logger
        Runtime = staticmethod(lambda log: runtime)
        context: Context
        TensorIOMode = SimpleNamespace(INPUT="in")

    Module.context = context
    return Library("stand-in", "1.0", Module)


class HostPlace:
    """This processor's memory; a clock that counts. With a context, work is captured with its buffers, as in graphs."""

    handle = 7

    def __init__(self, context=None):
        self.context, self.runs = context, 0

    def empty(self, shape, dtype):
        return torch.empty(shape, dtype=dtype)

    def upload(self, value):
        return value.clone()

    def download(self, value):
        return value.clone()

    def capture(self, work):
        if self.context is None:
            return None
        context, shape, address = self.context, self.context.shape, dict(self.context.address)

        def replay():
            now = context.shape, context.address
            context.shape, context.address = shape, address
            work()
            context.shape, context.address = now

        return replay

    def milliseconds(self, work):
        work()
        self.runs += 1
        return float(self.runs)


def session(**options):
    return EngineSession(library(**options), b"plan", HostPlace(), source="model.plan")


def test_it_describes_inputs_and_outputs_as_onnxruntime_does():
    (x,), (y,) = session().get_inputs(), session().get_outputs()
    assert (x.name, x.shape, x.type) == ("x", ["batch", 3], "tensor(float)")
    assert (y.name, y.shape, y.type) == ("y", ["batch", 3], "tensor(float16)")


def test_it_runs_batches_of_any_size_in_the_profile():
    opened = session()
    for batch in (1, 4, 2):
        x = np.arange(3 * batch, dtype=np.float64).reshape(batch, 3)  # converted to the engine's type
        (y,) = opened.run(None, {"x": x})
        assert y.dtype == np.float16 and (y == 2 * x).all()
    assert opened.run(["y"], {"x": x})[0].shape == (2, 3)


def test_results_are_copies():
    opened = session()
    (first,) = opened.run(None, {"x": np.ones((1, 3), np.float32)})
    opened.run(None, {"x": np.zeros((1, 3), np.float32)})
    assert (first == 2).all()


def test_a_batch_beyond_the_profile_is_refused_with_what_to_do():
    with pytest.raises(UserError, match="not built for shape") as caught:
        session().run(None, {"x": np.zeros((5, 3), np.float32)})
    assert "--batch" in caught.value.hint


@pytest.mark.parametrize("feeds", [{}, {"z": np.zeros((1, 3), np.float32)}])
def test_other_inputs_are_refused(feeds):
    with pytest.raises(UserError, match="takes the inputs x"):
        session().run(None, feeds)


def test_an_engine_that_fails_or_does_not_load_is_an_error():
    with pytest.raises(UserError, match="failed"):
        session(fail=True).run(None, {"x": np.zeros((1, 3), np.float32)})
    with pytest.raises(EnvironmentLacksError, match="does not load"):
        session(loads=False)


@pytest.mark.parametrize("captures", [True, False])
def test_its_own_clock_times_what_the_device_holds(captures):
    stand_in = library()
    opened = EngineSession(stand_in, b"plan", HostPlace(stand_in.module.context if captures else None))
    feeds = make_feeds(opened, 2, {})
    assert feeds["x"].shape == (2, 3) and feeds["x"].dtype == np.float32
    assert [milliseconds(opened, feeds) for _ in range(3)] == [1.0, 2.0, 3.0]
    assert opened.captured(feeds) is captures
    (y,) = opened.run(None, {"x": np.full((1, 3), 3, np.float32)})  # another batch in between
    assert (y == 6).all()
    assert milliseconds(opened, feeds) == 4.0


def test_a_session_without_a_clock_of_its_own_is_timed_by_the_host():
    assert milliseconds(SimpleNamespace(), {}) is None  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_an_engine_is_an_error_of_the_environment(tmp_path):
    assert find_device() is None and clocks() == {}
    with pytest.raises(EnvironmentLacksError, match="needs a CUDA device"):
        require_device("this")
    (tmp_path / "model.plan").write_bytes(b"x")
    with pytest.raises(EnvironmentLacksError, match=r"running model\.plan"):
        open_model(tmp_path / "model.plan")


def test_a_provider_that_onnxruntime_lacks_is_said(tmp_path):
    with pytest.raises(UserError, match=r"did you mean cuda\?"):
        open_model(tmp_path / "m.onnx", provider="cudas")
    import onnxruntime

    if "NvTensorRTRTXExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(EnvironmentLacksError, match="tensorrt-rtx"):
            open_model(tmp_path / "m.onnx", provider="tensorrt-rtx")
