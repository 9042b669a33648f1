"""Gate: the files are those that the manifest names, and the models are valid ONNX."""

from pathlib import Path

import onnx

from secateur.errors import EnvironmentLacksError, UserError
from secateur.export.artifact import MODEL_NAME
from secateur.export.hashing import hash_file
from secateur.export.manifest import describe_files
from secateur.export.tensorrt.engine_file import engine_for
from secateur.export.tensorrt.legality import check_legality
from secateur.gates import LegalityGate
from secateur.runtime_tests.judge import Judge
from secateur.runtime_tests.subject import Subject


def test_legality(gate: LegalityGate, subject: Subject, judge: Judge) -> None:
    files = subject.artifact.manifest["files"]
    wrong = [f"{name}: {why}" for name, entry in files.items() if (why := _difference(subject.directory / name, entry))]
    if MODEL_NAME not in files:
        wrong.append(f"{MODEL_NAME}: not in the manifest")
    unlisted = sorted(describe_files(subject.directory).keys() - files.keys())
    text = "; ".join(wrong) or f"all {len(files)} files have the sha256 of the manifest"
    if unlisted:
        text += f"; not in the manifest: {', '.join(unlisted)}"
    judge(
        "files that differ",
        len(wrong),
        0,
        text=text,
        details={"files": dict(files), "wrong": wrong, "unlisted": unlisted},
    )

    for path in (subject.model, subject.dense):
        if path:
            errors = _onnx_errors(path)
            text = "; ".join(errors) or "passes onnx.checker and strict shape inference"
            judge(f"errors in {path.name}", len(errors), 0, text=text)

    if subject.target is not None and subject.target.dialect == "tensorrt":
        findings = check_legality(onnx.load(str(subject.model)))
        illegal = [f"{finding.where}: {finding.reason}" for finding in findings if finding.illegal]
        slow = f"{len(findings) - len(illegal)} remarks on speed"
        judge("illegal for TensorRT", len(illegal), 0, text="; ".join(illegal) or f"nothing; {slow}")
        _judge_engine(subject, judge)


def _judge_engine(subject: Subject, judge: Judge) -> None:
    """Whether the engine is the one that was built from this ONNX file."""
    plan, name = subject.engine(subject.model), "engines that are stale or foreign"
    if not plan.is_file():
        missing = dict(subject.artifact.manifest.get("engines_missing", {}))
        judge.skipped(name, f"there is no engine: {missing.get(MODEL_NAME, 'none was built')}")
        return
    try:
        found, library = engine_for(plan, subject.model, None)  # whether it fits the device is for `unverified` to say
    except EnvironmentLacksError as error:
        judge.skipped(name, f"{error.what}: {error.why}")
    except UserError as error:
        judge(name, 1, 0, text="; ".join(part for part in (error.what, error.why) if part))
    else:
        where = ", ".join(found.key.capabilities)
        judge(name, 0, 0, text=f"built by {library.name} {library.version} for compute capabilities {where}")


def _difference(path: Path, entry: dict[str, object]) -> str:
    """How a file differs from its entry in the manifest, or nothing."""
    if not path.is_file():
        return "missing"
    if path.stat().st_size != entry["bytes"]:
        return f"{path.stat().st_size} bytes, the manifest says {entry['bytes']}"
    return "" if hash_file(path) == entry["sha256"] else "another sha256 than in the manifest"


def _onnx_errors(path: Path) -> list[str]:
    """What onnx finds wrong with a model file."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # protobuf's, onnx's and shape inference's exceptions have no common base
        return [f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"]
    return []
