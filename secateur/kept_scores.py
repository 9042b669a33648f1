"""Scores of an earlier ranking that still hold, when only their verification is asked for anew."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from .recipe import Recipe
from .run_directory import RunDirectory
from .version import __version__


def table_key(recipe: Recipe, program: str, files: Mapping[str, str]) -> str:
    """Hash of all that the scores depend on: what the ranking depends on, without its verification.

    Args:
        recipe: The recipe.
        program: Hash of the captured program.
        files: Hashes of files outside the run that give the data.
    """
    sections = recipe.model_dump(mode="json")
    spec = {key: value for key, value in sections["rank"].items() if not key.startswith("verify")}
    parts = [__version__, spec, *(sections[name] for name in ("data", "loss", "seed")), program, dict(files)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def keep_table(run: RunDirectory, step: str, file: str, key: str, folder: Path) -> bool:
    """Copies the scores of the finished ranking, byte for byte, if they were made under the same key.

    Args:
        run: The run.
        step: Folder of the ranking.
        file: Name of the table in it.
        key: What `table_key` says now.
        folder: Where the table goes.
    """
    record = run.record(step)
    if record is None or record.facts.get("table_key") != key or file in run.changed_files(step):
        return False
    shutil.copy2(run.folder(step) / file, folder / file)
    return True
