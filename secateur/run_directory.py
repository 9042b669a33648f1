"""The run directory: everything one compile produced, numbered, hashed and resumable.

    runs/x/
      recipe.yaml         resolved recipe
      manifest.json       per step: key of its inputs, hashes of its outputs, facts, seconds
      01-capture/ …       one folder a step, complete or absent
      05-heal.partial/    a step that was interrupted; continued on the next start
      report.html

A step's *key* is the hash of what it depends on: its sections of the recipe, the outputs of the steps before it and the
version of secateur. A step whose key did not change is not run again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .export.hashing import hash_file, hash_tree

FORMAT = 1
PARTIAL = ".partial"
KEY = ".key"
STATE = "state"
"""Folder in which a step that was interrupted finds what it had done."""


@dataclass(frozen=True)
class StepRecord:
    """What the manifest says of a finished step.

    Attributes:
        key: Hash of everything the step depended on.
        outputs: sha256 by file, relative to the step's folder.
        facts: What the step measured and decided (plain data).
        seconds: How long it took.
    """

    key: str
    outputs: Mapping[str, str]
    facts: Mapping[str, Any]
    seconds: float


class RunDirectory:
    """Reads and writes one run directory.

    Args:
        path: The directory; made if absent.
        read_only: Only to be read: neither made nor checked.

    Raises:
        UserError: It cannot be written, or holds something that is not a run.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        if read_only:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not os.access(self.path, os.W_OK):
                raise PermissionError(f"no permission to write {self.path}")
        except (OSError, FileExistsError) as error:
            raise UserError(
                "the run directory cannot be written",
                where=str(self.path),
                why=str(error),
                hint="choose another with --out",
            ) from None
        if not self._manifest.exists() and any(p.name != ".lock" for p in self.path.iterdir()):
            raise UserError(
                "this directory is not a run directory, and it is not empty",
                where=str(self.path),
                why="manifest.json is missing",
                hint="choose an empty directory with --out, or empty this one yourself",
            )

    @classmethod
    def existing(cls, path: str | Path, *, read_only: bool = False) -> RunDirectory:
        """Opens a run that is there.

        Args:
            path: The directory.
            read_only: Only to be read; it may lie where nothing can be written.

        Raises:
            UserError: There is none.
        """
        missing = [name for name in ("manifest.json", "recipe.yaml") if not (Path(path) / name).exists()]
        if missing:  # an artifact has a manifest as well
            around = Path(path).absolute().parent
            inside = (around / "manifest.json").exists() and (around / "recipe.yaml").exists()
            raise UserError(
                "there is no run here",
                where=str(path),
                why=f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
                hint=f"name the run that it is a part of: {around}" if inside else "secateur compile RECIPE --out DIR",
            )
        return cls(path, read_only=read_only)

    @property
    def _manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    def manifest(self) -> dict[str, Any]:
        """The manifest, empty if nothing has run yet.

        Raises:
            UserError: The file is damaged or was written by another format.
        """
        if not self._manifest.exists():
            return {"format": FORMAT, "steps": {}}
        try:
            data = json.loads(self._manifest.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']} is not {FORMAT}")
            data["steps"] = {name: dict(entry) for name, entry in data["steps"].items()}
            for entry in data["steps"].values():
                dict(StepRecord(**entry).outputs)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                "the run's manifest is damaged",
                where=str(self._manifest),
                why=str(error),
                hint="start over with --force, or choose another --out",
            ) from None
        return data

    def write_manifest(self, data: Mapping[str, Any]) -> None:
        """Replaces the manifest in one move."""
        beside = self._manifest.with_suffix(".json.tmp")
        beside.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        beside.replace(self._manifest)

    def folder(self, step: str) -> Path:
        """The folder of a finished step, e.g. `05-heal`."""
        return self.path / step

    def record(self, step: str) -> StepRecord | None:
        """What the manifest says of a step, or None if it has not finished."""
        entry = self.manifest()["steps"].get(step)
        return StepRecord(**entry) if entry and self.folder(step).is_dir() else None

    def changed_files(self, step: str) -> list[str]:
        """Files of a finished step that are missing or differ from what the step wrote."""
        record = self.record(step)
        if record is None:
            return []
        folder = self.folder(step)
        return [
            name
            for name, digest in record.outputs.items()
            if not (folder / name).is_file() or hash_file(folder / name) != digest
        ]

    def tree_hash(self, step: str, *, without: Collection[str] = ()) -> str:
        """Hash of a step's files as they are now (an edited plan changes it), some left out."""
        hashes = {name: value for name, value in hash_tree(self.folder(step)).items() if name not in without}
        return json.dumps(hashes, sort_keys=True)

    @contextmanager
    def writing(self, step: str, key: str) -> Iterator[Path]:
        """A scratch folder for a step; it survives an interruption and is handed out again for the same key."""
        scratch = self.path / (step + PARTIAL)
        stamp = scratch / KEY
        same = stamp.is_file() and stamp.read_text(encoding="utf-8") == key
        scratch.mkdir(exist_ok=True)
        for left in scratch.iterdir():  # of what was interrupted, only a training's own state can be trusted
            if not (same and left.name in {KEY, STATE}):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        stamp.write_text(key, encoding="utf-8")
        yield scratch

    def finish(self, step: str, key: str, facts: Mapping[str, Any], started: float) -> StepRecord:
        """Turns the scratch folder into the step's folder and enters it in the manifest."""
        scratch, final = self.path / (step + PARTIAL), self.folder(step)
        (scratch / KEY).unlink()
        shutil.rmtree(scratch / STATE, ignore_errors=True)
        if final.exists():
            shutil.rmtree(final)
        scratch.replace(final)
        record = StepRecord(key, hash_tree(final), dict(facts), round(time.monotonic() - started, 3))
        data = self.manifest()
        data["steps"][step] = {
            "key": key,
            "outputs": dict(record.outputs),
            "facts": record.facts,
            "seconds": record.seconds,
        }
        self.write_manifest(data)
        return record

    def clear(self) -> None:
        """Removes every step, keeping nothing."""
        for child in self.path.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            elif child.name != ".lock":
                child.unlink()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the directory for one process.

        Raises:
            UserError: Another process is working in it.
        """
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    "another secateur works in this run directory",
                    where=str(self.path),
                    hint="wait for it, or choose another --out",
                ) from None
            yield
