"""The artifact: a directory with the exported model, its baseline, the program that it came from, and a manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..passes.program import Program
from .hashing import hash_file
from .manifest import MANIFEST_NAME, read_manifest

MODEL_NAME = "model.onnx"
DENSE_NAME = "dense.onnx"
PROGRAM_NAME = "program"


@dataclass(frozen=True)
class Artifact:
    """An exported model.

    Attributes:
        directory: Where its files lie.
        manifest: Its description, as in `manifest.json`.
    """

    directory: Path
    manifest: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """The ONNX file to deploy."""
        return self.directory / MODEL_NAME

    @property
    def engine(self) -> Path | None:
        """The TensorRT engine of the model, if one was built."""
        path = self.model.with_suffix(".plan")
        return path if path.name in self.manifest["files"] else None

    @property
    def dense(self) -> Path | None:
        """The FP32 baseline, if it was exported with one."""
        path = self.directory / DENSE_NAME
        return path if DENSE_NAME in self.manifest["files"] else None

    def program(self) -> Program:
        """The program that the model was lowered from."""
        return Program.load(self.directory / PROGRAM_NAME)

    @staticmethod
    def load(directory: str | Path) -> Artifact:
        """Reads an artifact and checks that its files are those that were exported.

        Raises:
            UserError: It is none, or a file is missing or changed.
        """
        folder = Path(directory)
        artifact = Artifact(folder, read_manifest(folder))
        artifact.verify()
        return artifact

    def verify(self) -> None:
        """Checks every file against the manifest.

        Raises:
            UserError: A file is missing or changed.
        """
        hint = "export again; the files of an artifact are never edited"
        for name, entry in self.manifest["files"].items():
            path = self.directory / name
            if not path.is_file():
                raise UserError(
                    "a file of the artifact is missing", where=str(path), why="the manifest lists it", hint=hint
                )
            if hash_file(path) != entry["sha256"]:
                raise UserError(
                    "a file of the artifact was changed",
                    where=str(path),
                    why="its sha256 is not that of the manifest",
                    hint=hint,
                )


def is_artifact(directory: Path) -> bool:
    """Whether a directory holds an artifact, whole or not."""
    try:
        read_manifest(directory)
    except UserError:
        return False
    return True


@contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A temporary directory beside `directory` that takes its place when the block ends without an error.

    An artifact that was there stays untouched until then. A directory with nothing but hidden files is filled.

    Raises:
        UserError: `directory` holds something other than an artifact, or cannot be written.
    """
    _require_replaceable(directory)
    stage = directory.parent / f".{directory.name}.partial"
    try:
        shutil.rmtree(stage, ignore_errors=True)  # of an export that was killed
        stage.mkdir(parents=True)
    except OSError as error:
        raise UserError("the artifact cannot be written", where=str(directory), why=str(error)) from error
    try:
        yield stage
        install(stage, directory)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _require_replaceable(directory: Path) -> None:
    if not directory.exists() or (directory.is_dir() and (not _visible(directory) or is_artifact(directory))):
        return
    raise UserError(
        "the output exists and is not an artifact",
        where=str(directory),
        why="replacing it would delete files that secateur did not write",
        hint="name another directory, or remove this one",
    )


def _visible(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if not path.name.startswith(".")]


def install(stage: Path, directory: Path) -> None:
    """Puts what is in `stage` in the place of `directory`; if that fails, what was there comes back."""
    if not directory.exists():
        stage.rename(directory)
        return
    if not _visible(directory):
        # The manifest comes last: without it the directory is no artifact.
        for path in sorted(stage.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
            path.rename(directory / path.name)
        return
    old = directory.parent / f".{directory.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    directory.rename(old)
    try:
        stage.rename(directory)
    except BaseException:
        old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)
