"""Engines: built where the library is installed, cached by their key, refused where they do not belong."""

import dataclasses
import json

import onnx
import pytest
import torch
from nets import NETS, rebatch
from pydantic import ValidationError

from secateur.compress.calibrate import calibrate
from secateur.compress.quantize import prepare
from secateur.errors import EnvironmentLacksError, UnsupportedError, UserError
from secateur.export.artifact import Artifact
from secateur.export.export import export
from secateur.export.targets import TARGETS
from secateur.export.tensorrt.build import build_engine
from secateur.export.tensorrt.device import Device
from secateur.export.tensorrt.engine_file import engine_for, ensure_engine, read_engine
from secateur.export.tensorrt.key import EngineKey, require_fit
from secateur.export.tensorrt.layers import layers_of_inspector, layers_of_log, precision_report
from secateur.export.tensorrt.library import Library, load_library
from secateur.export.tensorrt.settings import EngineSettings
from secateur.passes.capture import capture

SETTINGS = EngineSettings(capabilities=("8.6",), batch=(1, 4, 8))


@pytest.fixture(scope="module")
def library() -> Library:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'secateur[tensorrt-rtx]'")
    return load_library("tensorrt_rtx")


@pytest.fixture(scope="module")
def programs():
    """The dense network and its quantised form."""
    net, (x,) = NETS["resnet_a"]()
    dense = capture(net, (x,))
    prepared, _ = prepare(dense, TARGETS["tensorrt-rtx"].scheme)
    return dense, calibrate(prepared, [(rebatch((x,), 8)[0], torch.zeros(8))]).eval()


@pytest.fixture(scope="module")
def artifact(library, programs, tmp_path_factory) -> Artifact:
    dense, quantised = programs
    out = tmp_path_factory.mktemp("engine") / "out"
    return export(quantised, out, target="tensorrt-rtx", baseline=dense, engine=SETTINGS)


@pytest.fixture
def plan(artifact, tmp_path):
    """A copy of the engine that a test may spoil."""
    for path in artifact.directory.glob("model.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model.plan"


def test_every_convolution_of_the_engine_is_integer(artifact):
    facts = artifact.manifest["engines"]["model.plan"]
    entries = facts["precision"]["entries"]
    assert facts["precision"]["source"] == "build log"
    convs = [entry for entry in entries if entry["op"] == "Conv"]
    assert len(convs) == 10 and all(entry["integer"] and entry["layer"] for entry in convs)
    (linear,) = [entry for entry in entries if not entry["integer"]]
    assert linear["op"] == "Gemm" and linear["reason"] == "its weights are not quantised"
    assert artifact.manifest["kernels"]["conv_share"] == 1.0


def test_the_manifest_tells_what_the_engines_depend_on(artifact, library):
    engines = artifact.manifest["engines"]
    assert engines.keys() == {"model.plan", "dense.plan"} and artifact.manifest["engines_missing"] == {}
    for name, facts in engines.items():
        key = EngineKey.from_json(facts["key"])
        assert (key.library, key.version, key.capabilities) == ("tensorrt_rtx", library.version, ("8.6",))
        assert key.onnx_sha256 == artifact.manifest["files"][name.replace("plan", "onnx")]["sha256"]
        assert facts["sha256"] == artifact.manifest["files"][name]["sha256"] and facts["seconds"] > 0
        assert (artifact.directory / f"{name}.log").stat().st_size > 0


def test_an_engine_is_built_again_only_if_its_key_changes(artifact, library, plan):
    onnx_file = plan.with_suffix(".onnx")
    assert ensure_engine(onnx_file, plan, SETTINGS, library)[1] is False
    _, built = ensure_engine(onnx_file, plan, SETTINGS.model_copy(update={"workspace_mib": 64}), library)
    assert built is True
    assert ensure_engine(onnx_file, plan, SETTINGS, library)[1] is True
    other = plan.with_name("other.plan")
    assert ensure_engine(onnx_file, other, SETTINGS, library, cached=plan)[1] is False
    assert read_engine(other).key == read_engine(plan).key


def test_exporting_again_keeps_the_engine(artifact, programs, library):
    before = read_engine(artifact.directory / "model.plan").facts["sha256"]
    dense, quantised = programs
    again = export(quantised, artifact.directory, target="tensorrt-rtx", baseline=dense, engine=SETTINGS)
    assert read_engine(again.directory / "model.plan").facts["sha256"] == before


def test_a_stale_engine_is_refused(plan):
    model = onnx.load(str(plan.with_suffix(".onnx")))
    model.doc_string = "changed"
    onnx.save(model, plan.with_suffix(".onnx"))
    with pytest.raises(UserError, match="stale"):
        engine_for(plan, plan.with_suffix(".onnx"), None)


def test_a_foreign_or_replaced_engine_is_refused(plan):
    content = plan.read_bytes()
    plan.write_bytes(content[:-1])
    with pytest.raises(UserError, match="replaced"):
        read_engine(plan)
    plan.write_bytes(content)
    plan.with_name("model.plan.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        read_engine(plan)
    plan.with_name("model.plan.json").unlink()
    with pytest.raises(UserError, match="foreign"):
        read_engine(plan)
    with pytest.raises(UserError, match="no engine here"):
        read_engine(plan.with_name("none.plan"))


def test_what_is_no_engine_is_recognised(plan, library):
    assert library.is_engine(plan.read_bytes())
    assert not library.is_engine(b"not an engine" * 100) and not library.is_engine(b"")
    facts = json.loads(plan.with_name("model.plan.json").read_text())
    plan.write_bytes(b"junk" * 100)
    import hashlib

    facts["sha256"] = hashlib.sha256(plan.read_bytes()).hexdigest()
    plan.with_name("model.plan.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="not an engine"):
        engine_for(plan, None, None)


KEY = EngineKey("0" * 64, "tensorrt", "11.0", ("8.9",), "GPU A", {})


@pytest.mark.parametrize(
    ("version", "device", "says"),
    [
        ("11.0", Device(0, "GPU A", "8.9", 1), ""),
        ("11.0", None, ""),
        ("11.1", None, "another library"),
        ("11.0", Device(0, "GPU A", "9.0", 1), "does not run on this GPU"),
        ("11.0", Device(0, "GPU B", "8.9", 1), "tuned on another GPU"),
    ],
)
def test_an_engine_fits_one_library_and_the_gpus_it_was_built_for(version, device, says):
    library = Library("tensorrt", version, None)
    if not says:
        return require_fit(KEY, None, library, device)
    with pytest.raises(UserError, match=says):
        require_fit(KEY, None, library, device)


def test_the_key_survives_json_and_every_part_counts():
    assert EngineKey.from_json(json.loads(json.dumps(KEY.to_json()))) == KEY
    others = [
        dataclasses.replace(KEY, **{field.name: change})
        for field, change in zip(
            dataclasses.fields(KEY),
            ("1" * 64, "tensorrt_rtx", "11.1", ("8.6",), "GPU B", {"sparse": True}),
            strict=True,
        )
    ]
    assert len({key.digest for key in (KEY, *others)}) == 7


def test_progress_is_told_and_an_interrupt_cancels(artifact, library):
    phases: list[str] = []
    build_engine(artifact.model, SETTINGS, library, progress=lambda done, total, phase: phases.append(phase))
    assert "Building engine" in phases and len(set(phases)) > 3

    def stop(done, total, phase):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(artifact.model, SETTINGS, library, progress=stop)


def test_a_capability_that_the_library_lacks_is_refused(artifact, library):
    with pytest.raises(UserError, match=r"9\.0") as caught:
        build_engine(artifact.model, EngineSettings(capabilities=("9.0",)), library)
    assert "8.9" in caught.value.hint


def test_profiles_have_to_fit_the_inputs(artifact, library):
    shape = {"min": (1, 3, 8, 8), "best": (2, 3, 8, 8), "max": (4, 3, 8, 8)}
    wrong = {"min": (1, 3, 9, 9), "best": (1, 3, 9, 9), "max": (1, 3, 9, 9)}
    for name, profile, says in (("nothing", shape, "no input 'nothing'"), ("x", wrong, "does not fit")):
        settings = EngineSettings.model_validate({"capabilities": ("8.6",), "profiles": {name: profile}})
        with pytest.raises(UserError, match=says):
            build_engine(artifact.model, settings, library)


@pytest.mark.parametrize(
    "fields",
    [
        {"batch": (8, 1, 32)},
        {"capabilities": ()},
        {"capabilities": ("sm86",)},
        {"capabilities": ("8.6", "8.6")},
        {"profiles": {"x": {"min": (4,), "best": (2,), "max": (8,)}}},
        {"fp16": True},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields):
    with pytest.raises(ValidationError):
        EngineSettings.model_validate(fields)


def test_an_illegal_network_never_reaches_the_builder(library, tmp_path):
    from tensorrt_graphs import GRAPHS

    onnx.save(GRAPHS["computed scale"](), tmp_path / "model.onnx")  # the parser crashes on it
    with pytest.raises(UnsupportedError, match="does not take this network"):
        build_engine(tmp_path / "model.onnx", SETTINGS, library)


def test_without_the_library_the_artifact_is_written_and_says_why(programs, tmp_path, monkeypatch):
    def missing(name):
        raise EnvironmentLacksError(f"{name} cannot be imported", why="no module")

    monkeypatch.setattr("secateur.export.tensorrt.engine_file.load_library", missing)
    made = export(programs[1], tmp_path / "out", target="tensorrt")
    assert made.manifest["engines"] == {}
    assert "tensorrt cannot be imported" in made.manifest["engines_missing"]["model.onnx"]
    assert made.manifest["kernels"]["conv_share"] == 1.0  # what the file asks for


def test_a_library_that_builds_on_a_gpu_needs_one(artifact):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(EnvironmentLacksError, match="builds engines on a GPU"):
        build_engine(artifact.model, EngineSettings(), Library("tensorrt", "11.0", object()))


def test_a_missing_library_is_said_with_what_to_install():
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(EnvironmentLacksError) as caught:
            load_library("tensorrt")
        assert "secateur[tensorrt]" in caught.value.hint
    else:
        assert load_library("tensorrt").version


INSPECTED = json.dumps(
    {
        "Layers": [
            {
                "Name": "conv1 + relu",
                "LayerType": "CaskConvolution",
                "Inputs": [
                    {"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
                ],
                "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
                "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu]",
            },
            "fc",
        ]
    }
)


ELEVEN = INSPECTED.replace(
    '"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"',
    '"Datatype": "Int8", "Format": "Thirty-two wide channel vectorized row major"',
).replace('"Format/Datatype": "Row major linear FP16 format"', '"Datatype": "Half", "Format": "Row major linear"')
"""The same of TensorRT 11, which has two fields for it."""


@pytest.mark.parametrize("text", [INSPECTED, ELEVEN])
def test_layers_are_read_from_the_inspector(text):
    conv, fc = layers_of_inspector(text)
    assert (conv.inputs, conv.outputs, conv.nodes) == (("Int8",), ("Half",), ("conv1", "relu"))
    assert fc.name == "fc" and fc.nodes == ("fc",)
    assert ("Format/Datatype" in text) is (text is INSPECTED)


def test_a_layer_that_the_builder_keeps_float_is_told():
    from tensorrt_graphs import GRAPHS

    line = (
        "Name: c_U6_myl0_1, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1], Datatype: Half }], "
        "Constants: [], Outputs: [ { Name: b, Datatype: Float }], TacticName: "
    )
    report = precision_report(GRAPHS["integer convolution"](), layers_of_log(f"Layers:\n{line}\n"), "build log")
    (entry,) = report.entries
    assert not entry.integer and entry.reason == "the builder chose a kernel on Half"
