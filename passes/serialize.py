"""Programs on disk: `graph.json`, `weights.safetensors` and `examples.safetensors`. No pickle, no class of the user's.

`graph.json` holds the nodes, the hyper-parameters of the layers, the signature and a digest of the tensor files; the
weights are stored under their dotted names, a tensor with several names once. Files of equal programs are equal.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import UnsupportedError, UserError
from .codec import CodecError, decode, encode
from .document import ForeignTarget, from_document, to_document
from .dynamic_axes import dynamic_shapes, names_in_graph
from .program import Program
from .shapes import batch_size, eval_mode, propagate, resize_batch

FORMAT = "secateur.program"
VERSION = 1
GRAPH, WEIGHTS, EXAMPLES, PT2 = "graph.json", "weights.safetensors", "examples.safetensors", "program.pt2"


def save(program: Program, directory: Path, *, pt2: bool = False) -> None:
    """Writes a program into a directory of its own; what was there before stays whole until the new one is complete.

    Args:
        program: The program.
        directory: Made if missing; an earlier program in it is replaced.
        pt2: Writes `program.pt2` of `torch.export.save` as well, for readers without secateur.

    Raises:
        UserError: The directory holds other files, or cannot be written.
        UnsupportedError: The program holds something that has no file form.
    """
    directory = Path(directory)
    files = _files(program)
    _restore(directory)
    _check_replaceable(directory)
    fresh, old = _beside(directory, "new"), _beside(directory, "old")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        if pt2:
            torch.export.save(_exported(program), fresh / PT2)
        if directory.exists():
            directory.rename(old)
        fresh.rename(directory)
    except OSError as error:
        raise UserError(
            "the program cannot be written",
            where=str(directory),
            why=str(error),
            hint="choose a directory that you can write to, on a disk with space left",
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        _restore(directory)


def load(directory: Path) -> Program:
    """Reads a program that `save` wrote.

    Raises:
        UserError: A file is missing, damaged, foreign or of a later version.
    """
    directory = Path(directory)
    _restore(directory)
    document = _read_document(directory)
    try:
        weights = _read_tensors(directory / WEIGHTS, document)
        examples = _read_tensors(directory / EXAMPLES, document)
        graph_module = from_document(document, weights)
        args, kwargs = decode(document["examples"], tensors=examples)
        dynamic = {name: tuple(axes) for name, axes in document.get("dynamic", {}).items()}
        notes = tuple(document.get("notes", ()))
        history = tuple(document["history"])
        program = Program(graph_module, args, kwargs, document["static_batch"], history, dynamic, notes)
        propagate(program)
    except UserError:
        raise
    except ForeignTarget as error:
        raise UserError(
            "the program calls an operation that no program may call",
            where=str(directory / GRAPH),
            why=str(error),
            hint="load only programs that secateur wrote",
        ) from error
    except Exception as error:  # Whatever a file with other contents than ours makes torch raise.
        detail = str(error).splitlines()[0] if str(error) else ""
        raise _damaged(directory / GRAPH, f"{type(error).__name__}: {detail}") from error
    return program


def _files(program: Program) -> dict[str, bytes]:
    """Contents of the files by name."""
    examples: dict[str, Tensor] = {}

    def example(tensor: Tensor) -> str:
        key = f"example.{len(examples)}"
        examples[key] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return key

    try:
        network, stored = to_document(program.graph_module)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "static_batch": program.static_batch,
            "history": list(program.history),
            "dynamic": {name: list(axes) for name, axes in program.dynamic.items()},
            "notes": list(program.notes),
            "examples": encode((program.example_args, dict(program.example_kwargs)), example),
            **network,
        }
        files = {WEIGHTS: format_safetensors(stored), EXAMPLES: format_safetensors(examples)}
    except (CodecError, KeyError) as error:
        raise UnsupportedError(
            "the program cannot be saved",
            where=" ".join(program.history),
            why=str(error),
            hint="use builtin containers as inputs and outputs, and real-valued tensors",
        ) from error
    document["digests"] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return {**files, GRAPH: text.encode()}


def _exported(program: Program) -> torch.export.ExportedProgram:
    """The program as `torch.export` has it, in eval mode."""
    args, kwargs = program.example_args, dict(program.example_kwargs)
    batch = None
    if program.static_batch is None:
        batch = max(batch_size(args, kwargs) or 1, 2)
        args, kwargs = resize_batch(args, kwargs, batch)
    # torch.export marks the tensors that it is given.
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (tuple(args), kwargs))
    names = names_in_graph(program.graph)
    told = dynamic_shapes(names, args, kwargs, program.dynamic, batch)
    bound = dict(zip(names, [*args, *kwargs.values()], strict=True))
    shapes = pytree.tree_map(lambda leaf: told.get(id(leaf)), bound) if batch or program.dynamic else None
    with eval_mode(program.graph_module):
        return torch.export.export(program.graph_module, args, kwargs, dynamic_shapes=shapes)


def _beside(directory: Path, suffix: str) -> Path:
    return directory.with_name(f".{directory.name}.{suffix}")


def _restore(directory: Path) -> None:
    """Puts an earlier program back, or away, if a `save` was stopped while it swapped directories."""
    old = _beside(directory, "old")
    if not old.exists():
        return
    if directory.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(directory)


def _check_replaceable(directory: Path) -> None:
    if directory.is_dir():
        foreign = sorted({entry.name for entry in directory.iterdir()} - {GRAPH, WEIGHTS, EXAMPLES, PT2})
        problem = f"it holds {foreign[0]}" if foreign else ""
    else:
        problem = "it is a file" if directory.exists() else ""
    if problem:
        raise UserError(
            "a program is saved into a directory of its own",
            where=str(directory),
            why=problem,
            hint="name a directory that does not exist, is empty or holds an earlier program",
        )


def _read_document(directory: Path) -> dict[str, Any]:
    path = directory / GRAPH
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        raise UserError(
            "there is no program here" if missing else "the program is damaged",
            where=str(path),
            why="the file does not exist" if missing else str(error),
            hint="name the directory that Program.save wrote",
        ) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise UserError(
            "this is not the graph of a program",
            where=str(path),
            why=f'"format" is not "{FORMAT}"',
            hint="name the directory that Program.save wrote",
        )
    if document.get("version") != VERSION:
        raise UserError(
            "the program was written in another version of the format",
            where=str(path),
            why=f"version {document.get('version')}, this secateur reads {VERSION}",
            hint="install the secateur that wrote it, or capture and save it again",
        )
    return document


def _read_tensors(path: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error)) from error
    if hashlib.sha256(content).hexdigest() != document["digests"][path.name]:
        raise _damaged(path, f"its sha256 is not the one in {GRAPH}")
    return parse_safetensors(content)


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        "the program is damaged", where=str(path), why=why, hint="save it again, or restore the directory from a copy"
    )
